"""Captions and their images as tensors, in an order that a resumed run finds again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vsrn.data.photo_splits import PhotoSplit, Pixels, made_ready
from vsrn.data.regions import first_of_zeros
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.vocabulary import UNK, Vocabulary
from vsrn.devices import moved, tensor_for
from vsrn.errors import ConfigError, DataError
from vsrn.metrics import FloatArray, IntArray
from vsrn.model.base import Batch
from vsrn.model.gru import pad_tokens

# Extra seed component: region dropping must not share the random stream that shuffles captions.
_DROPPING = 1
# Threads that read ahead of a GPU: at Flickr30K's size a batch takes longer to copy than a step.
LOADERS = 4
# Share of a device's free memory that regions may take: the passes of a step, and other runs, need the rest.
SHARE = 0.25
IMAGES_AT_ONCE = 256
# (B,) images -> (B, N, F) features, (B,) real regions of each or None.
Reads = Callable[[IntArray], tuple[npt.NDArray[Any], IntArray | None]]


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
    features = features[np.arange(len(features))[:, None], order]
    features[places >= left[:, None]] = 0
    return features, left


class ResidentRegions:
    """All regions of a split on a GPU, where a step gathers its batch, in the order that they are read.

    A step of a small model takes a GPU less time than threads take to read and send a batch of the paper's size, 19 MB;
    here a batch is a table of row numbers, 37 kB.

    table  (1 + num_images * N, F) as stored, N regions an image; row 0 is zeros, in place of a region that was dropped
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        """Read and move the regions. Raises `DataError` where an image cannot be used, as `Split.read_images` does."""
        self.split, self.device = split, device
        images = np.arange(split.num_images)
        parts = np.split(images, range(IMAGES_AT_ONCE, len(images), IMAGES_AT_ONCE))

        def read(part: IntArray) -> torch.Tensor:
            return tensor_for(device, split.read_images(part)[0].reshape(-1, split.regions.feature_dim))

        size = 1 + split.num_images * split.regions.num_regions, split.regions.feature_dim
        self.table = torch.zeros(size, dtype=read(images[:1]).dtype, device=device)
        place = 1
        for _, (rows,) in made_ready(([part] for part in parts), read, LOADERS, LOADERS):
            self.table[place : place + len(rows)] = moved(rows, device)
            place += len(rows)
        if device.type == "cuda":
            # Steps run on a stream of their own, which does not wait for these copies.
            torch.cuda.synchronize(device)

    def read_images(self, images: IntArray) -> tuple[IntArray, IntArray | None]:
        """(B,) images -> (B, N, 1) rows of the table in place of their features, (B,) real regions of each or None."""
        regions = self.split.regions
        rows = 1 + images[:, None, None] * regions.num_regions + np.arange(regions.num_regions)[:, None]
        return rows, regions.read_counts(self.split.rows[images])

    def filled(self, batch: Batch) -> Batch:
        """A batch with rows of the table as features -> the same with (B, N, F) features, on the device."""
        rows = batch.features.to(self.device, non_blocking=True)
        return batch._replace(features=self.table.index_select(0, rows.flatten()).view(*rows.shape[:2], -1))


def has_room(split: Split, device: torch.device) -> bool:
    """Whether a split's regions take at most `SHARE` of a GPU's free memory; never on a CPU, where they are anyway."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return split.num_images * split.read_images(np.arange(1))[0].nbytes <= SHARE * free


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

    The order and the dropped regions (`train.drop_regions`) depend on the seed and the epoch alone. The last captions
    of an epoch that fill no batch are left out, because a smaller batch has fewer negatives; every epoch leaves out
    others. Of `processes` that train together, each takes its share of every batch. With `resident`, the same batches
    are gathered on its device.
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
        self.lengths = np.array([len(ids) for ids in encoded])
        self.ends = np.cumsum(self.lengths)
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
        read = self.split.read_images if self.resident is None else self.resident.read_images
        make = functools.partial(self._made, read, epoch)
        shares = self.shares(epoch, first_step)
        batches: Iterator[Batch] = map(make, shares)
        if pinned:
            alone = ([share] for share in shares)
            made = made_ready(alone, lambda share: make(share).map(torch.Tensor.pin_memory), LOADERS, LOADERS)
            batches = (batch for _, (batch,) in made)
        yield from batches if self.resident is None else map(self.resident.filled, batches)

    def _made(self, read: Reads, epoch: int, share: Share) -> Batch:
        """One process's part of a step, with what `read` gives for its images."""
        features, counts = read(self.split.image_of_caption[share.captions])
        if self.dropped:
            assert isinstance(self.split, Split), "only regions can be dropped"
            # Those of the whole batch, the same for any number of processes.
            seed = (self.seed, epoch, share.step, _DROPPING)
            margins = draw_margins(self.batch_size, self.split.regions.num_regions, self.dropped, seed)
            features, counts = drop_regions(features, counts, margins[share.places])
        real = None if counts is None else torch.from_numpy(counts)
        return self.batch_of(share.captions, torch.from_numpy(features), real)

    def shares(self, epoch: int, first_step: int) -> Iterator[Share]:
        """This process's part of each step of an epoch, beginning with its step `first_step`."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.split.captions))
        places = np.split(np.arange(self.batch_size), self.processes)[self.rank]
        for step in range(first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = places[np.argsort(-self.lengths[batch[places]], kind="stable")]
            yield Share(step, batch[share], share)

    def batch_of(self, captions: IntArray, features: torch.Tensor, counts: torch.Tensor | None) -> Batch:
        """A batch of captions with the features of their images, and the counts of real regions or None."""
        tokens, lengths = pad_tokens([self.tokens[self.ends[c] - self.lengths[c] : self.ends[c]] for c in captions])
        return Batch(features, tokens, lengths, counts, torch.from_numpy(self.split.image_of_caption[captions]))

    def check_zeros(self, epoch: int, step: int) -> None:
        """Raise `DataError` where `train.drop_regions` left an image of a batch (from 0) with zeros alone."""
        split = self.split
        if not isinstance(split, Split) or not split.zeros_divide:
            return
        share = next(self.shares(epoch, step))
        batch = self._made(split.read_images, epoch, share)
        place = first_of_zeros(batch.features.numpy(), None if batch.counts is None else batch.counts.numpy())
        if place is not None:
            row = int(split.rows[split.image_of_caption[share.captions[place]]])
            raise DataError(
                f"{split.regions.where(row)} has regions of zeros beside others, and train.drop_regions left the zeros"
                " alone, which the model divides by their length of 0; give the store a"
                f" {split.name}_counts.npy that leaves them out, or set train.drop_regions to 0."
            )


class PhotoBatches(TrainingBatches):
    """All captions of a split with random crops of their photos, (B, S, S, 3) uint8, decoded ahead in threads.

    A crop depends on the seed, the epoch and the caption alone, not on threads or on where a run was resumed.
    """

    def epoch(self, epoch: int, first_step: int = 0, *, pinned: bool = False) -> Iterator[Batch]:
        """What `TrainingBatches.epoch` gives, of photos. Raises `PhotoError` where one cannot be read."""
        split = self.split
        assert isinstance(split, PhotoSplit)

        def part_for(caption: int) -> Pixels:
            path = split.path(int(split.image_of_caption[caption]))
            return split.view.read_random_part(path, self.seed, epoch, caption)

        shares = (share.captions.tolist() for share in self.shares(epoch, first_step))
        for captions, pixels in made_ready(shares, part_for):
            batch = self.batch_of(np.array(captions), torch.from_numpy(np.stack(pixels)), None)
            yield batch.map(torch.Tensor.pin_memory) if pinned else batch
