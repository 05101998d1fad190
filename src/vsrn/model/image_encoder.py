"""Region features to one embedding an image (sections 3.1 to 3.3)."""

from __future__ import annotations

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.base import BaseImageEncoder, EncodedImages
from vsrn.model.gru import at_least_float32, l2_normalise
from vsrn.model.reasoning import RegionRelationshipReasoning, normalise_channels
from vsrn.model.registry import AGGREGATORS


class ImageEncoder(BaseImageEncoder):
    """Projection, reasoning layers, aggregator, normalisation.

    COCO path         projection -> channels -> reasoning -> channels -> aggregator -> L2
    Flickr30K path    projection -> reasoning -> channels -> aggregator -> BatchNorm -> L2
    None              projection -> reasoning -> aggregator -> L2
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.feature_dim is not None, "the feature size is known before a model is built"
        dim = config.joint_dim
        self.projection = nn.Linear(config.feature_dim, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.reasoning = nn.ModuleList(RegionRelationshipReasoning(dim) for _ in range(config.reasoning_layers))
        self.aggregator: nn.Module = AGGREGATORS.make(config.aggregator, dim)
        self.norm = nn.BatchNorm1d(dim) if config.normalisation == "flickr30k" else None

    def forward(self, features: torch.Tensor, counts: torch.Tensor | None = None) -> EncodedImages:
        """(B, N, F) features as stored, (B,) real regions of each or None for all -> `EncodedImages`."""
        mask = None if counts is None else torch.arange(features.shape[1], device=counts.device) < counts[:, None]
        # The residual stream stays float32 under bf16 autocast; only the products inside layers are bf16.
        regions = at_least_float32(self.projection(features.to(self.projection.weight.dtype)))
        if mask is not None:
            regions = regions * mask[..., None]
        if self.config.normalisation == "coco":
            regions = normalise_channels(regions)
        for layer in self.reasoning:
            regions = layer(regions, mask)
        if self.config.normalisation != "none":
            regions = normalise_channels(regions)
        embeddings = self.aggregator(regions, mask)
        if self.norm is not None:
            embeddings = self.norm(embeddings)
        embeddings = l2_normalise(embeddings) if self.config.image_norm else at_least_float32(embeddings)
        if self.config.absolute:
            embeddings = embeddings.abs()
        return EncodedImages(embeddings, regions)
