"""Token ids to one embedding a caption (section 3.4; with generalised pooling, VSE-infinity's)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.data.vocabulary import PAD
from vsrn.model.base import BaseTextEncoder
from vsrn.model.gru import at_least_float32, l2_normalise, read_sequences
from vsrn.model.registry import AGGREGATORS


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


def pad_tokens(tokens: Sequence[npt.NDArray[np.integer]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of B captions -> (B, T) padded with <pad>, and (B,) lengths."""
    lengths = torch.tensor([len(ids) for ids in tokens])
    padded = torch.full((len(tokens), int(lengths.max())), PAD)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = torch.as_tensor(ids)
    return padded, lengths
