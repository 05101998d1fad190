"""Pixels to one embedding a photo: the image side of VSE++."""

from __future__ import annotations

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.image_encoder import EncodedImages
from vsrn.model.network import ImageNetwork
from vsrn.model.numerics import l2_normalise, widen


class PhotoEncoder(nn.Module):
    """Network -> unit length -> projection -> unit length (Faghri et al. 2018, section 3.1).

    The network stands still, in evaluation mode and without a gradient, until `fine_tune` sets it free.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = ImageNetwork(config.network.name)
        self.projection = nn.Linear(self.network.feature_dim, config.joint_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.fine_tune(False)

    def fine_tune(self, learns: bool) -> bool:
        """Let the network learn, or keep it as it is; says whether that is a change."""
        changes = any(parameter.requires_grad != learns for parameter in self.network.parameters())
        self.network.requires_grad_(learns)
        self.learns = learns
        self.network.train(self.training and learns)
        return changes

    def train(self, mode: bool = True) -> PhotoEncoder:
        """Training or evaluation mode, but for a network that stands still."""
        super().train(mode)
        self.network.train(mode and self.learns)
        return self

    def forward(self, photos: torch.Tensor, _counts: torch.Tensor | None = None) -> EncodedImages:
        """(B, S, S, 3) uint8 RGB -> `EncodedImages` with one region, the whole photo."""
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            features = l2_normalise(self.network(photos))
        regions = widen(self.projection(features.to(self.projection.weight.dtype)))
        embeddings = l2_normalise(regions) if self.config.image_norm else regions
        return EncodedImages(embeddings.abs() if self.config.absolute else embeddings, regions[:, None])
