"""VSRN (Li et al., ICCV 2019): its two encoders, and the model that is put together of them and a captioner.

The parts follow the paper: `ImageEncoder` (sections 3.1 to 3.3; the affinity is in reasoning.py), `TextEncoder`, the
matching loss (losses.py) and `Captioner` (3.4). Everything that the paper ablates is a field of `ModelConfig`.
"""

from __future__ import annotations

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.base import BaseImageEncoder, BaseTextEncoder, EncodedImages, MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.gru import at_least_float32, l2_normalise, read_sequences
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


class TextEncoder(BaseTextEncoder):
    """Word embedding, GRU, state at the last real token, unit length.

    The config can make the GRU bidirectional, with the directions' states averaged (the last state is then the mean of
    each direction's own last), and can pool all states instead of taking the last.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(vocabulary_size, config.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.gru = nn.GRU(
            config.word_dim,
            config.joint_dim,
            config.caption_layers,
            batch_first=True,
            bidirectional=config.caption_bidirectional,
        )
        self.aggregator: nn.Module | None = None
        if config.caption_aggregator != "last":
            self.aggregator = AGGREGATORS.make(config.caption_aggregator, config.joint_dim)

    @property
    def words(self) -> nn.Embedding:
        """(vocabulary size, word size) vectors of the words."""
        return self.embedding

    @property
    def reads_forwards_only(self) -> bool:
        """Whether an embedding is the GRU's last state, so that captions which begin alike share states."""
        return self.aggregator is None and not self.gru.bidirectional

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each (on the CPU) -> (B, D)."""
        states = read_sequences(self.gru, self.embedding(tokens), lengths)
        if self.aggregator is None:
            return self.embed(self._last(states, lengths.to(states.device)))
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return self.embed(self.aggregator(self.mean_of_directions(states), mask.to(states.device)))

    def _last(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T, D or 2D) the GRU's outputs -> (B, D) its last state, or the mean of each direction's."""
        forward = states[torch.arange(len(states), device=states.device), lengths - 1, : self.gru.hidden_size]
        if not self.gru.bidirectional:
            return forward
        return (at_least_float32(forward) + at_least_float32(states[:, 0, self.gru.hidden_size :])) / 2

    def mean_of_directions(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, D or 2D) the GRU's outputs -> (B, T, D)."""
        if not self.gru.bidirectional:
            return states
        forward, backward = at_least_float32(states).chunk(2, dim=-1)
        return (forward + backward) / 2

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, D) last or pooled states -> (B, D) embeddings."""
        embeddings = l2_normalise(pooled)
        return embeddings.abs() if self.config.absolute else embeddings


def build_vsrn(config: ModelConfig, vocabulary_size: int) -> MatchingModel:
    """A fresh VSRN: image encoder, text encoder and, if the config enables it, captioner."""
    image_encoder = ImageEncoder(config)
    text_encoder = TEXT_ENCODERS.make(config.text_encoder, config, vocabulary_size)
    captioner = Captioner(config.captioner, config.joint_dim, vocabulary_size) if config.captioner.enabled else None
    return MatchingModel(config, image_encoder, text_encoder, captioner)
