"""Captions and their images as tensors, in an order that a resumed run finds again."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vsrn.data.photo_splits import PhotoSplit, Pixels, made_ready
from vsrn.data.regions import first_of_zeros
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.vocabulary import UNK, Vocabulary
from vsrn.errors import ConfigError, DataError
from vsrn.metrics import FloatArray, IntArray
from vsrn.model.base import Batch
from vsrn.model.gru import pad_tokens
from vsrn.training.resident import ResidentRegions

# Extra seed component: region dropping must not share the random stream that shuffles captions.
_DROPPING = 1
# Threads that make batches ahead of a GPU: at Flickr30K's size a batch takes longer to copy than a step.
LOADERS = 4


def draw_margins(images: int, regions: int, most: float, seed: Sequence[int]) -> FloatArray:
    """(images, regions) numbers that decide which regions are dropped: those below 0.

    most  the probability of a region to be dropped is drawn for each image, between 0 and this
    """
    generator = np.random.default_rng(seed)
    probabilities = most * generator.random((images, 1), dtype=np.float32)
    return generator.random((images, regions), dtype=np.float32) - probabilities


def drop_regions(
    features: npt.NDArray[Any], counts: IntArray | None, margins: FloatArray
) -> tuple[npt.NDArray[Any], IntArray]:
    """Drop regions: (B, N, F) regions and (B,) real ones of each, or None for all -> the same, of those kept.

    margins  (B, N) of `draw_margins`; an image always keeps the region with its largest margin

    The shape stays (B, N, F): kept regions come first, in their order, and zeros follow.
    """
    places = np.arange(features.shape[1])
    real = np.broadcast_to(places < (features.shape[1] if counts is None else counts[:, None]), margins.shape)
    margins = np.where(real, margins, -np.inf)
    kept = margins >= np.minimum(margins.max(axis=1, keepdims=True), 0)
    # A stable sort moves the kept regions forward in their order.
    order = np.argsort(~kept, axis=1, kind="stable")
    left = kept.sum(axis=1)
    moved = features[np.arange(len(features))[:, None], order]
    moved[places >= left[:, None]] = 0
    return moved, left


class Share(NamedTuple):
    """One process's part of a step.

    captions  (B,) longest first
    places    (B,) of each in the batch that all processes share
    """

    step: int
    captions: IntArray
    places: IntArray


class TrainingBatches:
    """All captions of a split with the regions of their images, in a new random order every epoch.

    The order and the dropped regions (`train.drop_regions`) depend on the seed and the epoch alone, so a resumed run
    repeats any step. The last captions of an epoch that fill no batch are left out, because a smaller batch has fewer
    negatives; every epoch leaves out others. Of `processes` that train together, each takes its share of every batch.
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
        if len(encoded) < 2:
            raise DataError(f"split '{split.name}' of {split.folder} has one caption; training needs two at least.")
        self.batch_size = min(batch_size, len(encoded))
        self.seed, self.dropped, self.rank, self.processes = seed, dropped, rank, processes
        self.resident: ResidentRegions | None = None
        if self.batch_size % processes:
            raise ConfigError(
                f"train.batch_size {self.batch_size} does not divide among {processes} processes; choose a multiple."
            )

    @property
    def unknown_share(self) -> float:
        """Share, 0 to 1, of the captions' words that the vocabulary does not have."""
        # Each caption has a start and an end besides.
        return float((self.tokens == UNK).sum() / max(1, len(self.tokens) - 2 * len(self.split.captions)))

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the captions."""
        return len(self.split.captions) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0, *, pinned: bool = False) -> Iterator[Batch]:
        """Batches of an epoch (from 0), beginning with its step `first_step`.

        pinned  whether threads make them ahead, in memory that a GPU reads without waiting
        """
        make = functools.partial(self._made if self.resident is None else self._placed, epoch)
        batches: Iterator[Batch] = (make(share) for share in self.shares(epoch, first_step))
        if pinned:
            shares = ([share] for share in self.shares(epoch, first_step))
            made = made_ready(shares, lambda share: in_pinned_memory(make(share)), LOADERS, LOADERS)
            batches = (batch for _, (batch,) in made)
        yield from batches if self.resident is None else map(self.resident.filled, batches)

    def keep_on(self, device: torch.device) -> None:
        """Copy all regions to a device, where batches are gathered from now on; the numbers in them stay the same.

        Raises `DataError` where an image cannot be used, as `Split.read_images` does.
        """
        assert isinstance(self.split, Split), "only regions are kept on a device"
        self.resident = ResidentRegions(self.split, device)

    def _made(self, epoch: int, share: Share) -> Batch:
        """One process's part of a step."""
        features, counts = self.split.read_images(self.split.image_of_caption[share.captions])
        margins = self._margins(epoch, share.step)
        if margins is not None:
            features, counts = drop_regions(features, counts, margins[share.places])
        real = None if counts is None else torch.from_numpy(counts)
        return self.batch_of(share.captions, torch.from_numpy(features), real)

    def _placed(self, epoch: int, share: Share) -> Batch:
        """One process's part of a step, with `ResidentRegions.rows` in place of features."""
        assert isinstance(self.split, Split)
        assert self.resident is not None
        images = self.split.image_of_caption[share.captions]
        counts, left = self.split.regions.read_counts(self.split.rows[images]), None
        order = np.tile(np.arange(self.split.regions.num_regions), (len(images), 1))
        margins = self._margins(epoch, share.step)
        if margins is not None:
            moved, left = drop_regions(order[..., None], counts, margins[share.places])
            order, counts = moved[..., 0], left
        real = None if counts is None else torch.from_numpy(counts)
        return self.batch_of(share.captions, self.resident.rows(images, order, left), real)

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        """This process's part of each step of an epoch, beginning with its step `first_step`."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.split.captions))
        places = np.split(np.arange(self.batch_size), self.processes)[self.rank]
        for step in range(first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = places[np.argsort(-self._lengths(batch[places]), kind="stable")]
            yield Share(step, batch[share], share)

    def images(self, epoch: int, first_step: int = 0) -> Iterator[torch.Tensor]:
        """(B,) number of each caption's image, for each batch that `epoch` gives."""
        for share in self.shares(epoch, first_step):
            yield torch.from_numpy(self.split.image_of_caption[share.captions])

    def batch_of(self, captions: IntArray, features: torch.Tensor, counts: torch.Tensor | None) -> Batch:
        """A batch of captions with the features of their images, and the counts of real regions or None."""
        tokens, lengths = pad_tokens([self.tokens[self.starts[c] : self.starts[c + 1]] for c in captions])
        return Batch(features, tokens, lengths, counts)

    def check_zeros(self, epoch: int, step: int) -> None:
        """Raise `DataError` where dropping left an image of a batch with zeros alone, naming its row.

        epoch, step  of the batch, from 0

        An image of zeros is refused when it is read. This finds an image that has regions of zeros among others, and
        that lost all others to `train.drop_regions`.
        """
        split = self.split
        if not isinstance(split, Split) or not split.zeros_divide:
            return
        share = next(self.shares(epoch, step))
        batch = self._made(epoch, share)
        place = first_of_zeros(batch.features.numpy(), None if batch.counts is None else batch.counts.numpy())
        if place is not None:
            row = int(split.rows[split.image_of_caption[share.captions[place]]])
            raise DataError(
                f"{split.regions.where(row)} has regions of zeros beside others, and train.drop_regions left the zeros"
                " alone, which the model divides by their length of 0; give the store a"
                f" {split.name}_counts.npy that leaves them out, or set train.drop_regions to 0."
            )

    def _lengths(self, captions: IntArray) -> IntArray:
        return self.starts[captions + 1] - self.starts[captions]

    def _margins(self, epoch: int, step: int) -> FloatArray | None:
        """`draw_margins` of the whole batch, the same for any number of processes; None where nothing is dropped."""
        if not self.dropped:
            return None
        assert isinstance(self.split, Split), "only regions can be dropped"
        seed = (self.seed, epoch, step, _DROPPING)
        return draw_margins(self.batch_size, self.split.regions.num_regions, self.dropped, seed)


class PhotoBatches(TrainingBatches):
    """All captions of a split with random crops of their photos, (B, S, S, 3) uint8, decoded ahead in threads.

    A crop depends on the seed, the epoch and the caption alone, not on threads or on where a run was resumed.
    """

    @property
    def photos(self) -> PhotoSplit:
        """The split of photos."""
        assert isinstance(self.split, PhotoSplit)
        return self.split

    def epoch(self, epoch: int, first_step: int = 0, *, pinned: bool = False) -> Iterator[Batch]:
        """Batches of an epoch (from 0), beginning with its step `first_step`.

        pinned  whether they lie in memory that a GPU reads without waiting

        Raises `PhotoError` where a photo cannot be read.
        """
        shares = (share.captions.tolist() for share in self.shares(epoch, first_step))
        for captions, pixels in made_ready(shares, functools.partial(self._pixels, epoch)):
            batch = self.batch_of(np.array(captions), torch.from_numpy(np.stack(pixels)), None)
            yield in_pinned_memory(batch) if pinned else batch

    def _pixels(self, epoch: int, caption: int) -> Pixels:
        path = self.photos.path(int(self.split.image_of_caption[caption]))
        return self.photos.view.read_random_part(path, self.seed, epoch, caption)


def batches_for(split: CaptionedImages) -> type[TrainingBatches]:
    """The class that makes a split's batches: of photos, or of regions."""
    return TrainingBatches if isinstance(split, Split) else PhotoBatches


def in_pinned_memory(batch: Batch) -> Batch:
    """A copy of a batch that a GPU reads without waiting for the processor."""
    counts = None if batch.counts is None else batch.counts.pin_memory()
    return Batch(batch.features.pin_memory(), batch.tokens.pin_memory(), batch.lengths.pin_memory(), counts)


def send(batch: Batch, device: torch.device, *, lengths: bool = False) -> Batch:
    """The batch on a device; from pinned memory no copy waits for a step.

    lengths  whether the captions' lengths go there too
    """

    def sent(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    counts = None if batch.counts is None else sent(batch.counts)
    return Batch(sent(batch.features), sent(batch.tokens), sent(batch.lengths) if lengths else batch.lengths, counts)
