"""Token ids to one embedding a caption (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from vsrn.captions.vocabulary import PAD
from vsrn.config import ModelConfig
from vsrn.model.numerics import l2_normalise


class CaptionEncoder(nn.Module):
    """Word embedding, one-directional GRU, state at the last real token, unit length."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary_size, config.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.gru = nn.GRU(config.word_dim, config.joint_dim, config.caption_layers, batch_first=True)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each (on the CPU) -> (B, D)."""
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return self.embed(last[-1])

    def embed(self, last: torch.Tensor) -> torch.Tensor:
        """(B, D) states at the last real token -> (B, D) embeddings."""
        embeddings = l2_normalise(last)
        return embeddings.abs() if self.config.absolute else embeddings


def pad_tokens(tokens: Sequence[npt.NDArray[np.integer]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of B captions -> (B, T) padded with <pad>, and (B,) lengths."""
    lengths = torch.tensor([len(ids) for ids in tokens])
    padded = torch.full((len(tokens), int(lengths.max())), PAD)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = torch.as_tensor(ids)
    return padded, lengths
