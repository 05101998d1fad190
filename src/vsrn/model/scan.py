"""SCAN (Lee et al., *Stacked Cross Attention for Image-Text Matching*, ECCV 2018), the paper's strongest rival.

Its two encoders are plain; what it adds is in `cross_attention`: a similarity is made of every region and every word,
so there is no vector of an image that could be kept and searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from vsrn.config import LossConfig, ModelConfig
from vsrn.model.cross_attention import similarities
from vsrn.model.losses import loss_of
from vsrn.model.matching import Losses, MatchingModel
from vsrn.model.numerics import widen
from vsrn.model.recurrence import read_sequences


class EncodedRegions(NamedTuple):
    """Images as sets.

    vectors  (B, N, D) unit vectors, 0 where a region is padding
    mask     (B, N) True where a region is real, or None where all are
    """

    vectors: torch.Tensor
    mask: torch.Tensor | None


class RegionEncoder(nn.Module):
    """Section 3.3: every region projected, unit length."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.feature_dim is not None, "the feature size is settled before a model is built"
        self.projection = nn.Linear(config.feature_dim, config.joint_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, features: torch.Tensor, counts: torch.Tensor | None = None) -> EncodedRegions:
        """(B, N, F) features as stored, (B,) real regions of each or None for all."""
        regions = functional.normalize(widen(self.projection(features.to(self.projection.weight.dtype))), dim=-1)
        if counts is None:
            return EncodedRegions(regions, None)
        mask = torch.arange(features.shape[1], device=counts.device) < counts[:, None]
        return EncodedRegions(regions * mask[..., None], mask)


class WordEncoder(nn.Module):
    """Section 3.4: every word in its context, the GRU's directions averaged, unit length."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.gru = nn.GRU(
            config.word_dim,
            config.joint_dim,
            config.caption_layers,
            batch_first=True,
            bidirectional=config.scan.bidirectional,
        )

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each (on the CPU) -> (B, T, D), 0 behind the last word."""
        states = widen(read_sequences(self.gru, self.embedding(tokens), lengths))
        if self.gru.bidirectional:
            forwards, backwards = states.chunk(2, dim=-1)
            states = (forwards + backwards) / 2
        return functional.normalize(states, dim=-1)


class SCAN(MatchingModel):
    """Region encoder, word encoder, stacked cross attention."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.region_encoder = RegionEncoder(config)
        self.word_encoder = WordEncoder(config, vocabulary_size)

    @property
    def similarity(self) -> str:
        """Both directions count as one scale, since the published ensembles average them."""
        return "stacked cross attention"

    @property
    def words(self) -> nn.Embedding:
        """The word encoder's."""
        return self.word_encoder.embedding

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        counts: torch.Tensor | None,
        loss: LossConfig,
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
        epochs: float = math.inf,
    ) -> Losses:
        """The matching loss of B matching pairs, as `MatchingModel.forward` takes them."""
        images = self.region_encoder(features, counts)
        mask = None if images.mask is None else gather(images.mask)
        # Other processes may have longer captions, and all gather words of one shape.
        all_lengths = gather(lengths.to(tokens.device)).cpu()
        tokens = functional.pad(tokens, (0, int(all_lengths.max()) - tokens.shape[1]))
        words = gather(self.word_encoder(tokens, lengths))
        scores = similarities(gather(images.vectors), words, all_lengths, mask, self.config.scan)
        matching = loss_of(scores, loss, epochs)
        return Losses(matching, torch.zeros_like(matching))
