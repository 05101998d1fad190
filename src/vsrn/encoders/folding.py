"""An image encoder for use rather than training: products of weights and BatchNorms are folded away once."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import nn

from vsrn.encoders.prefixes import GRULayer
from vsrn.model.aggregators import GlobalSemanticReasoning
from vsrn.model.gru import at_least_float32
from vsrn.model.image_encoder import ImageEncoder
from vsrn.model.reasoning import FoldedProducts, RegionRelationshipReasoning


class FoldedReasoning(nn.Module):
    """`RegionRelationshipReasoning` in evaluation mode, with about half its arithmetic."""

    weight: torch.Tensor
    bias: torch.Tensor
    row: torch.Tensor
    constant: torch.Tensor
    shift: torch.Tensor

    def __init__(self, layer: RegionRelationshipReasoning) -> None:
        super().__init__()
        folded = layer.folded()
        norm = layer.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        # Queries stay as they are; what is sent, and its shift, take BatchNorm's scale.
        scales = torch.cat([torch.ones_like(scale), scale])
        self.register_buffer("weight", folded.weight * scales[:, None])
        self.register_buffer("bias", folded.bias * scales)
        self.register_buffer("row", folded.row)
        self.register_buffer("constant", folded.constant)
        self.register_buffer("shift", (folded.shift - norm.running_mean) * scale + norm.bias)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) regions -> (B, N, D) relation-aware regions."""
        regions = regions.to(self.weight.dtype)
        update = FoldedProducts(self.weight, self.bias, self.row, self.constant, self.shift).messages(regions, mask)
        return regions + (update if mask is None else update * mask[..., None])


class FoldedGlobalReasoning(nn.Module):
    """`GlobalSemanticReasoning` a step at a time over time-major gates, with weights rounded once."""

    def __init__(self, aggregator: GlobalSemanticReasoning, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = GRULayer(aggregator.gru, dtype=dtype)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) reasoned regions -> (B, D)."""
        gates = self.layer.gates(regions.transpose(0, 1).contiguous())  # (N, B, 3D)
        state = self.layer.first_state(len(regions))
        for place in range(regions.shape[1]):
            following = self.layer.step(gates[place], state)
            state = following if mask is None else torch.where(mask[:, place, None], following, state)
        return at_least_float32(state)


AnyImageEncoder = TypeVar("AnyImageEncoder", bound=nn.Module)


@torch.no_grad()
def fold(encoder: AnyImageEncoder, dtype: torch.dtype | None = None) -> AnyImageEncoder:
    """A copy of an image encoder that gives the same embeddings (to 1e-5) in evaluation mode, faster.

    dtype  `torch.bfloat16` rounds the weights once, and so the matrix products and the GRU's states; the
           cosine to float32 stays above 0.999

    An encoder of photos has nothing to fold: it comes back itself, or as a rounded copy.
    """
    if not isinstance(encoder, ImageEncoder):
        return encoder if dtype is None else copy.deepcopy(encoder).to(dtype).eval()
    folded = ImageEncoder(encoder.config).to(encoder.projection.weight)
    folded.load_state_dict(encoder.state_dict())
    layers = [layer for layer in folded.reasoning if isinstance(layer, RegionRelationshipReasoning)]
    folded.reasoning = nn.ModuleList(FoldedReasoning(layer).to(dtype) for layer in layers)
    if dtype is not None:
        folded.projection.to(dtype)
        if isinstance(folded.aggregator, GlobalSemanticReasoning):
            folded.aggregator = FoldedGlobalReasoning(folded.aggregator, dtype)
    return cast("AnyImageEncoder", folded.eval())
