"""Region features to one embedding an image (sections 3.1 to 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.aggregators import GeneralisedPooling
from vsrn.model.gru import l2_normalise, widen
from vsrn.model.reasoning import (
    GlobalSemanticReasoning,
    MeanPooling,
    RegionRelationshipReasoning,
    normalise_channels,
)


class EncodedImages(NamedTuple):
    """What the image encoder gives.

    embeddings        (B, D) in the joint space
    reasoned_regions  (B, N, D) what entered the aggregator, and what the captioner reads
    """

    embeddings: torch.Tensor
    reasoned_regions: torch.Tensor


class ImageEncoder(nn.Module):
    """Projection, reasoning layers, aggregator, normalisation.

    COCO path         projection -> channels -> reasoning -> channels -> aggregator -> L2
    Flickr30K path    projection -> reasoning -> channels -> aggregator -> BatchNorm -> L2
    None              projection -> reasoning -> aggregator -> L2
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.feature_dim is not None, "the feature size is settled before a model is built"
        self.config = config
        dim = config.joint_dim
        self.projection = nn.Linear(config.feature_dim, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.reasoning = nn.ModuleList(RegionRelationshipReasoning(dim) for _ in range(config.reasoning_layers))
        self.aggregator = _aggregator(config)
        self.norm = nn.BatchNorm1d(dim) if config.normalisation == "flickr30k" else None

    def forward(self, features: torch.Tensor, counts: torch.Tensor | None = None) -> EncodedImages:
        """(B, N, F) features as stored, (B,) real regions of each or None for all -> `EncodedImages`."""
        mask = None if counts is None else torch.arange(features.shape[1], device=counts.device) < counts[:, None]
        # Layers add to the regions, so these stay wide even where products are rounded.
        regions = widen(self.projection(features.to(self.projection.weight.dtype)))
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
        embeddings = l2_normalise(embeddings) if self.config.image_norm else widen(embeddings)
        if self.config.absolute:
            embeddings = embeddings.abs()
        return EncodedImages(embeddings, regions)


def _aggregator(config: ModelConfig) -> nn.Module:
    """(B, N, D) regions and their (B, N) mask or None -> (B, D), as the config asks for it."""
    if config.aggregator == "gru":
        return GlobalSemanticReasoning(config.joint_dim)
    return GeneralisedPooling() if config.aggregator == "gpo" else MeanPooling()
