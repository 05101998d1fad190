"""VSRN (Li et al., ICCV 2019): `ImageEncoder` (sections 3.1 to 3.3), `TextEncoder`, and the model of them."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.base import BaseImageEncoder, EncodedImages, MatchingModel, WordGRU, make_projection, project
from vsrn.model.captioner import Captioner
from vsrn.model.gru import at_least_float32, mask_of, state_at
from vsrn.model.reasoning import RegionRelationshipReasoning, normalise_channels
from vsrn.model.registry import AGGREGATORS, TEXT_ENCODERS


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
        self.projection = make_projection(config.feature_dim, dim)
        self.reasoning = nn.ModuleList(RegionRelationshipReasoning(dim) for _ in range(config.reasoning_layers))
        self.aggregator: nn.Module = AGGREGATORS.make(config.aggregator, dim)
        self.norm = nn.BatchNorm1d(dim) if config.normalisation == "flickr30k" else None

    def forward(self, features: torch.Tensor, counts: torch.Tensor | None = None) -> EncodedImages:
        """(B, N, F) features as stored, (B,) real regions of each or None for all -> `EncodedImages`."""
        regions, mask = self._projected(features, counts)
        for layer in self.reasoning:
            regions = layer(regions, mask)
        if self.config.normalisation != "none":
            regions = normalise_channels(regions)
        embeddings = self.aggregator(regions, mask)
        if self.norm is not None:
            embeddings = self.norm(embeddings)
        return EncodedImages(self.as_embeddings(embeddings, unit_length=self.config.image_norm), regions)

    def affinities(self, features: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, F) features, (B,) real regions of each or None for all -> (layers, B, N, N) affinities R of Eq. 2.

        Rows are the regions that receive, columns those that send; padded ones are 0 in both.
        """
        regions, mask = self._projected(features, counts)
        found = []
        for layer in self.reasoning:
            affinity = cast("RegionRelationshipReasoning", layer).affinity(regions, mask)
            found.append(affinity if mask is None else affinity * mask[..., None])
            regions = layer(regions, mask)
        return torch.stack(found) if found else regions.new_zeros(0, *regions.shape[:2], regions.shape[1])

    def _projected(
        self, features: torch.Tensor, counts: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, F), (B,) -> (B, N, D) what enters the first reasoning layer, (B, N) mask or None."""
        mask = mask_of(features, counts)
        # The residual stream stays float32 under bf16 autocast; only the products inside layers are bf16.
        regions = project(self.projection, features)
        if mask is not None:
            regions = regions * mask[..., None]
        return normalise_channels(regions) if self.config.normalisation == "coco" else regions, mask


class TextEncoder(WordGRU):
    """Word embedding, GRU, state at the last real token, unit length.

    A bidirectional GRU's states are averaged, the last of each direction too. The config can pool all states instead.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config, vocabulary_size, bidirectional=config.caption_bidirectional)
        self.aggregator: nn.Module | None = None
        if config.caption_aggregator != "last":
            self.aggregator = AGGREGATORS.make(config.caption_aggregator, config.joint_dim)

    @property
    def reads_forwards_only(self) -> bool:
        """Whether an embedding is the GRU's last state, so that captions which begin alike share states."""
        return self.aggregator is None and not self.gru.bidirectional

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each -> (B, D)."""
        states = self.states(tokens, lengths)
        lengths = lengths.to(states.device)
        if self.aggregator is not None:
            return self.as_embeddings(self.aggregator(self.mean_of_directions(states), mask_of(states, lengths)))
        last, dim = state_at(states, lengths - 1), self.gru.hidden_size
        if self.gru.bidirectional:
            last = (at_least_float32(last[:, :dim]) + at_least_float32(states[:, 0, dim:])) / 2
        return self.as_embeddings(last)


def build_vsrn(config: ModelConfig, vocabulary_size: int) -> MatchingModel:
    """A fresh VSRN: image encoder, text encoder and, if the config enables it, captioner."""
    image_encoder = ImageEncoder(config)
    text_encoder = TEXT_ENCODERS.make(config.text_encoder, config, vocabulary_size)
    captioner = Captioner(config.captioner, config.joint_dim, vocabulary_size) if config.captioner.enabled else None
    return MatchingModel(config, image_encoder, text_encoder, captioner)
