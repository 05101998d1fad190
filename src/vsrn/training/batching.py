"""Captions and their images as tensors, in an order that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vsrn.captions.vocabulary import Vocabulary
from vsrn.errors import ConfigError
from vsrn.model.caption_encoder import pad_tokens
from vsrn.regions.store import IntArray
from vsrn.splits import Split


@dataclass(frozen=True)
class Batch:
    """B matching pairs of an image and a caption, longest caption first.

    features  (B, N, F) float32
    tokens    (B, T) ids, padded with <pad>
    lengths   (B,) real tokens of each caption, on the CPU
    counts    (B,) real regions of each image, or None where all are real
    """

    features: torch.Tensor
    tokens: torch.Tensor
    lengths: torch.Tensor
    counts: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; lengths stay on the CPU, where packing wants them."""
        return Batch(
            self.features.to(device, non_blocking=True),
            self.tokens.to(device, non_blocking=True),
            self.lengths,
            None if self.counts is None else self.counts.to(device, non_blocking=True),
        )


class TrainingBatches:
    """All captions of a split in a new random order every epoch.

    The order depends on the seed and the epoch alone, so any step of any epoch can be found again.
    The last captions of an epoch that fill no batch are left out of it, as a smaller batch would have
    fewer negatives; every epoch leaves out others. Of `processes` that train together, each takes its share
    of every batch.
    """

    def __init__(
        self, split: Split, vocabulary: Vocabulary, batch_size: int, seed: int, *, rank: int = 0, processes: int = 1
    ) -> None:
        self.split = split
        self.tokens = [np.array(vocabulary.encode(caption)) for caption in split.captions]
        self.batch_size = min(batch_size, len(self.tokens))
        self.seed, self.rank, self.processes = seed, rank, processes
        if self.batch_size % processes:
            raise ConfigError(
                f"train.batch_size {self.batch_size} does not divide among {processes} processes; choose a multiple."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the captions."""
        return len(self.tokens) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch (from 0), from one of its steps on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.tokens))
        for step in range(first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._batch(np.split(batch, self.processes)[self.rank])

    def _batch(self, captions: IntArray) -> Batch:
        lengths = np.array([len(self.tokens[caption]) for caption in captions])
        captions = captions[np.argsort(-lengths, kind="stable")]
        features, counts = self.split.read_images(self.split.image_of_caption[captions])
        tokens, lengths_tensor = pad_tokens([self.tokens[caption] for caption in captions])
        return Batch(
            features=torch.from_numpy(features).float(),
            tokens=tokens,
            lengths=lengths_tensor,
            counts=None if counts is None else torch.from_numpy(counts),
        )
