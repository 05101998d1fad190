"""Captions and their images as tensors, in an order that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from vsrn.data.region_store import FloatArray, IntArray
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.vocabulary import Vocabulary
from vsrn.errors import ConfigError
from vsrn.model.text_encoder import pad_tokens


def draw_margins(images: int, regions: int, most: float, seed: Sequence[int]) -> FloatArray:
    """(images, regions) by how much each region escapes being dropped; below 0 it does not.

    most  each image draws the probability that its regions are dropped by, between 0 and this
    """
    generator = np.random.default_rng(seed)
    probabilities = most * generator.random((images, 1), dtype=np.float32)
    return generator.random((images, regions), dtype=np.float32) - probabilities


def drop_regions(features: FloatArray, counts: IntArray | None, margins: FloatArray) -> tuple[FloatArray, IntArray]:
    """(B, N, F) regions and (B,) real ones of each or None for all -> those that are kept, in their order.

    margins  (B, N) of `draw_margins`; whatever they are, an image keeps the region of its largest

    The shape stays: kept regions come first, zeros follow, and the counts say how many are real.
    """
    places = np.arange(features.shape[1])
    real = np.broadcast_to(places < (features.shape[1] if counts is None else counts[:, None]), margins.shape)
    margins = np.where(real, margins, -np.inf)
    kept = margins >= np.minimum(margins.max(axis=1, keepdims=True), 0)
    # A stable sort by what is dropped moves the kept ones forward and leaves their order.
    order = np.argsort(~kept, axis=1, kind="stable")
    left = kept.sum(axis=1)
    moved = np.take_along_axis(features, order[..., None], axis=1)
    moved[places >= left[:, None]] = 0
    return moved, left


# Sets what is dropped apart from the order of captions, which has the same seed and epoch.
_DROPPING = 1


@dataclass(frozen=True)
class Batch:
    """B matching pairs of an image and a caption, longest caption first.

    features  (B, N, F) as stored, float16 or float32; or (B, S, S, 3) uint8 pixels
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
            _send(self.features, device),
            _send(self.tokens, device),
            self.lengths,
            None if self.counts is None else _send(self.counts, device),
        )


class Share(NamedTuple):
    """One process's part of a step.

    captions  (B,) longest first
    places    (B,) of each in the batch that all processes share
    """

    step: int
    captions: IntArray
    places: IntArray


class TrainingBatches:
    """All captions of a split in a new random order every epoch.

    The order depends on the seed and the epoch alone, so any step of any epoch can be found again, and with it the
    regions that it drops (`train.drop_regions`).
    The last captions of an epoch that fill no batch are left out of it, as a smaller batch would have
    fewer negatives; every epoch leaves out others. Of `processes` that train together, each takes its share
    of every batch.
    """

    def __init__(
        self,
        split: CaptionedImages,
        vocabulary: Vocabulary,
        batch_size: int,
        seed: int,
        *,
        dropped: float = 0.0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.split = split
        encoded = [np.array(vocabulary.encode(caption), dtype=np.int32) for caption in split.captions]
        # End to end in one array: half a million small ones would cost more than the ids in them.
        self.tokens = np.concatenate(encoded)
        self.starts = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])])
        self.batch_size = min(batch_size, len(encoded))
        self.seed, self.dropped, self.rank, self.processes = seed, dropped, rank, processes
        if self.batch_size % processes:
            raise ConfigError(
                f"train.batch_size {self.batch_size} does not divide among {processes} processes; choose a multiple."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the captions."""
        return len(self.split.captions) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch (from 0), from one of its steps on."""
        for share in self.shares(epoch, first_step):
            features, counts = self.split.read_images(self.split.image_of_caption[share.captions])
            margins = self._margins(epoch, share.step)
            if margins is not None:
                features, counts = drop_regions(features, counts, margins[share.places])
            real = None if counts is None else torch.from_numpy(counts)
            yield self.batch_of(share.captions, torch.from_numpy(features), real)

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        """This process's part of each step of an epoch, from one of its steps on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.split.captions))
        places = np.split(np.arange(self.batch_size), self.processes)[self.rank]
        for step in range(first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = places[np.argsort(-self._lengths(batch[places]), kind="stable")]
            yield Share(step, batch[share], share)

    def batch_of(self, captions: IntArray, features: torch.Tensor, counts: torch.Tensor | None) -> Batch:
        """A batch of captions with what is known of their images."""
        tokens, lengths = pad_tokens([self.tokens[self.starts[c] : self.starts[c + 1]] for c in captions])
        return Batch(features, tokens, lengths, counts)

    def _lengths(self, captions: IntArray) -> IntArray:
        return self.starts[captions + 1] - self.starts[captions]

    def _margins(self, epoch: int, step: int) -> FloatArray | None:
        """What decides which regions each image of a batch drops, the same however many processes share the batch."""
        if not self.dropped:
            return None
        assert isinstance(self.split, Split), "only regions can be dropped"
        seed = (self.seed, epoch, step, _DROPPING)
        return draw_margins(self.batch_size, self.split.regions.num_regions, self.dropped, seed)


def _send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to a device; to a GPU from pinned memory, so that the copy does not wait for the step before."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
