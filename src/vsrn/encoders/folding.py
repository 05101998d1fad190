"""The two encoders for use rather than training: the same embeddings with less arithmetic.

Images: products of weights and BatchNorms are folded into one matrix, once.

Captions: a one-directional GRU's state after a prefix depends on the prefix alone, so captions are walked as a tree,
one level a step: a quarter to a third of the tokens of real captions share their whole prefix with another caption.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeGuard, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vsrn.metrics import IntArray
from vsrn.model.aggregators import GlobalSemanticReasoning
from vsrn.model.gru import at_least_float32, is_plain, pad_tokens
from vsrn.model.reasoning import FoldedProducts, RegionRelationshipReasoning
from vsrn.model.vsrn import ImageEncoder

# Of each tensor, to notice that it has changed.
NUMBERS_LOOKED_AT = 64


class GRULayer:
    """One layer of a GRU (Cho et al. 2014, with torch's order of gates: reset, update, new), for inference.

    Everything is computed in `dtype`, or in the weights' own. Shapes: B rows, I input size, D state size.
    """

    def __init__(self, gru: nn.GRU, number: int = 0, dtype: torch.dtype | None = None) -> None:
        names = (f"{name}_l{number}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        rounded = (getattr(gru, name).detach().to(dtype) for name in names)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = rounded
        self.dim = gru.hidden_size

    def gates(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) inputs -> (..., 3D), their part of the three gates."""
        return functional.linear(inputs.to(self.weight_ih.dtype), self.weight_ih, self.bias_ih)

    def step(self, gates: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(B, 3D) the input's part of the gates, (B, D) states before -> (B, D) states after."""
        dim = self.dim
        recurrent = functional.linear(state, self.weight_hh, self.bias_hh)
        reset, update = recurrent[:, : 2 * dim].add_(gates[:, : 2 * dim]).sigmoid_().chunk(2, dim=1)
        new = torch.addcmul(gates[:, 2 * dim :], reset, recurrent[:, 2 * dim :]).tanh_()
        return new.lerp_(state, update)


class FoldedReasoning(nn.Module):
    """`RegionRelationshipReasoning` in evaluation mode, with about half its arithmetic; buffers hold its products."""

    def __init__(self, layer: RegionRelationshipReasoning) -> None:
        super().__init__()
        folded, norm = layer.folded(), layer.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        # The query half keeps its weights; the message half and its shift take BatchNorm's scale.
        scales = torch.cat([torch.ones_like(scale), scale])
        shift = (folded.shift - norm.running_mean) * scale + norm.bias
        folded = folded._replace(weight=folded.weight * scales[:, None], bias=folded.bias * scales, shift=shift)
        for name, tensor in folded._asdict().items():
            self.register_buffer(name, tensor)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) regions -> (B, N, D) relation-aware regions."""
        folded = FoldedProducts(*self.buffers())
        regions = regions.to(folded.weight.dtype)
        update = folded.messages(regions, mask)
        return regions + (update if mask is None else update * mask[..., None])


class FoldedGlobalReasoning(nn.Module):
    """`GlobalSemanticReasoning` a step at a time over time-major gates, with weights rounded once."""

    def __init__(self, aggregator: GlobalSemanticReasoning, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = GRULayer(aggregator.gru, dtype=dtype)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) reasoned regions -> (B, D)."""
        gates = self.layer.gates(regions.transpose(0, 1).contiguous())  # (N, B, 3D)
        state = gates.new_zeros(len(regions), self.layer.dim)
        for place in range(regions.shape[1]):
            following = self.layer.step(gates[place], state)
            state = following if mask is None else torch.where(mask[:, place, None], following, state)
        return at_least_float32(state)


@torch.no_grad()
def fold(encoder: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """An image encoder that gives the same embeddings (to 1e-5) in evaluation mode, faster.

    dtype  `torch.bfloat16` rounds weights, matrix products and the GRU's states; the cosine to float32 stays above
           0.999

    The result shares with the encoder whatever is not folded or rounded, and its mode. What has hooks, adapters or
    wrapped layers is left as it is, so that they see every product; where that leaves nothing to fold or round, the
    encoder itself comes back.
    """
    if not is_plain(encoder, ImageEncoder):
        hooked = not all(is_plain(part, type(part)) for part in encoder.modules())
        return encoder if dtype is None or hooked else copy.deepcopy(encoder).to(dtype)
    assert isinstance(encoder, ImageEncoder)
    if dtype is not None and not (is_plain(encoder.projection, nn.Linear) and all(map(_foldable, encoder.reasoning))):
        return encoder
    folded = copy.copy(encoder)
    folded._modules = dict(encoder._modules)
    folded.reasoning = folded_layers(encoder.reasoning, dtype)
    if dtype is not None:
        folded.projection = copy.deepcopy(encoder.projection).to(dtype)
        aggregator = encoder.aggregator
        if is_plain(aggregator, GlobalSemanticReasoning) and is_plain(aggregator.get_submodule("gru"), nn.GRU):
            folded.aggregator = FoldedGlobalReasoning(cast("GlobalSemanticReasoning", aggregator), dtype)
    return folded


@torch.no_grad()
def folded_layers(layers: nn.ModuleList, dtype: torch.dtype | None = None) -> nn.ModuleList:
    """Layers of reasoning in evaluation mode, each folded if it is `_foldable`."""
    return nn.ModuleList(FoldedReasoning(layer).to(dtype) if _foldable(layer) else layer for layer in layers)


def _foldable(layer: nn.Module) -> TypeGuard[RegionRelationshipReasoning]:
    """Whether a layer is the paper's reasoning, with nothing added that would have to see its products."""
    if not isinstance(layer, RegionRelationshipReasoning) or not is_plain(layer, RegionRelationshipReasoning):
        return False
    return layer.foldable and is_plain(layer.norm, nn.BatchNorm1d)


def state_of(module: nn.Module) -> tuple[object, ...]:
    """What differs once a module has other weights, other parts or other hooks; a folded copy is good until then."""
    parts = tuple((id(part), type(part), is_plain(part, type(part))) for part in module.modules())
    tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
    kept = tuple(
        (tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, tensor.dtype, tuple(tensor.shape))
        for tensor in tensors
    )
    # torch does not count changes through `tensor.data`: they are seen where they meet one of these numbers.
    few = [tensor.flatten()[:: 1 + tensor.numel() // NUMBERS_LOOKED_AT].float() for tensor in tensors]
    return parts, kept, torch.cat(few).cpu().numpy().tobytes() if few else b""


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A context in which a module is in evaluation mode; parts that were in training mode are so again afterwards."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Level(NamedTuple):
    """Distinct prefixes of one length.

    parents  (nodes,) which node of the level before each one continues
    tokens   (nodes,) the word it continues with
    ended    (captions that end here,) their places in the batch
    ends     (captions that end here,) the node each ends at
    """

    parents: IntArray
    tokens: IntArray
    ended: IntArray
    ends: IntArray


def prefix_tree(captions: Sequence[IntArray]) -> list[Level]:
    """Token ids of each caption -> the levels of the tree of their prefixes, shortest first.

    >>> levels = prefix_tree([np.array([1, 5, 2]), np.array([1, 5, 7, 2])])
    >>> [len(level.tokens) for level in levels]
    [1, 1, 2, 1]
    """
    padded, lengths = (tensor.numpy() for tensor in pad_tokens(captions))
    # In dictionary order, captions with a common beginning are neighbours.
    order = np.lexsort(padded.T[::-1])
    padded, lengths = padded[order], lengths[order]
    levels, node_of_caption = [], np.zeros(len(captions), dtype=np.int64)
    for place in range(padded.shape[1]):
        active = np.flatnonzero(lengths > place)
        before, tokens = node_of_caption[active], padded[active, place]
        new = np.ones(len(active), dtype=bool)
        new[1:] = (before[1:] != before[:-1]) | (tokens[1:] != tokens[:-1])
        node_of_caption[active] = np.cumsum(new) - 1
        ending = np.flatnonzero(lengths == place + 1)
        levels.append(Level(before[new], tokens[new], order[ending], node_of_caption[ending]))
    return levels


def last_states(
    gru: nn.GRU, embedding: nn.Embedding, captions: Sequence[IntArray], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The last layer's state at the last token of each caption: (num_captions, D) without gradients."""
    layers = [GRULayer(gru, number, dtype) for number in range(gru.num_layers)]
    used = np.unique(np.concatenate(captions))
    by_word = layers[0].gates(embedding(torch.from_numpy(used).to(embedding.weight.device)))  # (words used, 3D)
    last = by_word.new_empty(len(captions), gru.hidden_size)
    states = [by_word.new_zeros(1, gru.hidden_size) for _ in layers]
    for level in prefix_tree(captions):
        parents = torch.from_numpy(level.parents).to(last.device)
        gates = by_word[torch.from_numpy(np.searchsorted(used, level.tokens)).to(last.device)]
        for number, layer in enumerate(layers):
            if number:
                gates = layer.gates(states[number - 1])
            states[number] = layer.step(gates, states[number][parents])
        last[torch.from_numpy(level.ended)] = states[-1][torch.from_numpy(level.ends)]
    return last
