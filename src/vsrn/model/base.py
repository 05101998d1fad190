"""What training and evaluation ask of a model, whatever its kind."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from vsrn.config import LossConfig, ModelConfig


class Losses(NamedTuple):
    """Both halves of the joint loss; `generation` is 0 without a captioner."""

    matching: torch.Tensor
    generation: torch.Tensor

    @property
    def joint(self) -> torch.Tensor:
        """Eq. 10: matching plus generation, weight 1."""
        return self.matching + self.generation


class MatchingModel(nn.Module, abc.ABC):
    """A model that learns from pairs of an image and a caption which of them belong together."""

    config: ModelConfig

    @property
    @abc.abstractmethod
    def similarity(self) -> str:
        """Name of the scale of its similarities; models of one scale can be averaged."""

    @property
    @abc.abstractmethod
    def words(self) -> nn.Embedding:
        """(vocabulary size, word size) what each word of a caption is to the encoder."""

    def begin_epoch(self, _epoch: int) -> bool:
        """Be ready to learn in this epoch (from 0); whether other parameters learn than before."""
        return False

    @abc.abstractmethod
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
        """The losses of B matching pairs.

        features  (B, N, F) regions of each pair's image, or (B, S, S, 3) uint8 its pixels
        tokens    (B, T) ids of each pair's caption, padded with <pad>
        lengths   (B,) real tokens of each caption, on the CPU
        counts    (B,) real regions of each image, or None where all are real
        gather    makes the embeddings of a larger batch of these, where several processes share one
        epochs    how far training is, for a loss that warms up; by default it has
        """
