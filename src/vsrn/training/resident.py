"""All regions that a run learns from, kept on a GPU with room for them: a step gathers its batch there.

A batch of the paper's size is 19 MB. A step of a small model takes a GPU less time than threads take to read, copy and
send that; with the regions there already, a batch is a table of row numbers, 37 kB.

N regions of F numbers each.
"""

from __future__ import annotations

import numpy as np
import torch

from vsrn.data.photo_splits import made_ready
from vsrn.data.splits import Split
from vsrn.devices import moved, tensor_for
from vsrn.metrics import IntArray
from vsrn.model.base import Batch

# Share of a device's free memory that regions may take: the passes of a step, and other runs, need the rest.
SHARE = 0.25
IMAGES_AT_ONCE = 256
READERS = 4


class ResidentRegions:
    """The regions of a split's images on a device, in the order that they are read.

    table  (num_images * N + 1, F) as stored; its last row is zeros, which stand for a region that was dropped
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        """Read and move the regions. Raises `DataError` where an image cannot be used, as `Split.read_images` does."""
        self.num_regions, self.device = split.regions.num_regions, device
        images = np.arange(split.num_images)
        parts = np.split(images, range(IMAGES_AT_ONCE, len(images), IMAGES_AT_ONCE))

        def read(part: IntArray) -> torch.Tensor:
            return tensor_for(device, split.read_images(part)[0].reshape(-1, split.regions.feature_dim))

        self.table = torch.empty(0, device=device)
        place = 0
        for _, (rows,) in made_ready(([part] for part in parts), read, READERS, READERS):
            if place == 0:
                size = split.num_images * self.num_regions + 1, split.regions.feature_dim
                self.table = torch.zeros(size, dtype=rows.dtype, device=device)
            self.table[place : place + len(rows)] = moved(rows, device)
            place += len(rows)
        if device.type == "cuda":
            # Steps run on a stream of their own, which does not wait for these copies.
            torch.cuda.synchronize(device)

    def rows(self, images: IntArray, order: IntArray, left: IntArray | None) -> torch.Tensor:
        """(B, N) rows of the table that hold the regions of some images.

        images  (B,) numbers of images of the split
        order   (B, N) which of an image's regions comes at each place
        left    (B,) places that hold a region, after which come zeros; None where all do
        """
        rows = images[:, None] * self.num_regions + order
        if left is not None:
            rows[np.arange(self.num_regions) >= left[:, None]] = len(self.table) - 1
        return torch.from_numpy(rows)

    def filled(self, batch: Batch) -> Batch:
        """A batch whose features are `rows` -> the same with (B, N, F) features, on the device."""
        rows = batch.features.to(self.device, non_blocking=True)
        features = self.table.index_select(0, rows.flatten()).view(*rows.shape, -1)
        return batch._replace(features=features)


def has_room(split: Split, device: torch.device) -> bool:
    """Whether a split's regions take at most `SHARE` of a GPU's free memory; never on a CPU, where they are anyway."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return split.num_images * split.read_images(np.arange(1))[0].nbytes <= SHARE * free
