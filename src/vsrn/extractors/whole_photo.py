"""Regions without a detector, from any network that reads a photo at one size: windows of its map, or its patches.

A photo of any shape is squashed to the size that the network learned with, so that regions cover all of it.
`timm_backbone.py` and `hugging_face.py` say which network.

B photos; a map is (B, F, H, W), patches are (B, P + H * W, F) with P tokens in front that belong to no place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_names
from vsrn.tensors import fingerprint_of

POOLED_SIDE = 6
# A few photos at once stay in the processor's cache: twice the rate of 32 at once.
PHOTOS_AT_ONCE = 4


@dataclass(frozen=True)
class PixelRules:
    """How a photo becomes the pixels that a network learned with.

    height, width  of what it reads
    mean, std      of red, green and blue, between 0 and 1
    resample       how a photo is resized, a number of `PIL.Image.Resampling`
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = int(Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Grid:
    """What a network says of each place of a photo.

    features  (B, F, H, W)
    patches   whether places are the patches that a transformer reads, which stay as they are; a map is pooled
    """

    features: torch.Tensor
    patches: bool


# (B, 3, height, width) scaled pixels -> `Grid`.
GridOf = Callable[[torch.Tensor], Grid]


class WholePhotoExtractor:
    """Windows or patches of a photo, in raster order, without scores."""

    has_scores: ClassVar[bool] = False
    names: ClassVar[RegionNames] = RegionNames()

    def __init__(
        self,
        name: str,
        files: ExtractorFiles,
        network: nn.Module,
        grid_of: GridOf,
        rules: PixelRules,
        fingerprint: str = "",
    ) -> None:
        """Wrap a network.

        name         as `vsrn extract --extractor` takes it
        grid_of      scaled pixels -> what the network says of each place
        fingerprint  SHA-256 (hex) of weights and settings; "" for that of the name, the rules and the network's weights
        """
        check_no_names(name, files)
        self.name, self.files, self.rules = name, files, rules
        self.device = pick_device(files.device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.grid_of = grid_of
        self.fingerprint = fingerprint or fingerprint_of(f"{name}, {rules}, v1", network.state_dict())
        with torch.inference_mode():
            grid = grid_of(self.pixels([np.zeros((rules.height, rules.width, 3), np.uint8)]))
        self.feature_dim, height, width = grid.features.shape[1:]
        rows, columns = (height, width) if grid.patches else _pooled_size(height, width)
        self.boxes = window_boxes((height, rows), (width, columns))
        self.num_regions = rows * columns

    @property
    def photo_size(self) -> int:
        """The longer side of what the network reads, in pixels."""
        return max(self.rules.height, self.rules.width)

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (height, width, 3) uint8, squashed."""
        size = (self.rules.width, self.rules.height)
        return np.asarray(photo.resize(size, Image.Resampling(self.rules.resample)))

    def pixels(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """(height, width, 3) of 0 to 255 -> (B, 3, height, width) float32, scaled as the network learned."""
        photos = self.levels(prepared) / 255
        mean, std = (photos.new_tensor(numbers)[:, None, None] for numbers in (self.rules.mean, self.rules.std))
        return (photos - mean) / std

    def levels(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """(height, width, 3) of 0 to 255 -> (B, 3, height, width) float32 of the same levels, where the network is."""
        # Channels stay last in memory, as networks on a processor like them.
        return torch.from_numpy(np.stack(prepared)).to(self.device).permute(0, 3, 1, 2).float()

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(height, width, 3) uint8 arrays -> `Regions` of each."""
        regions: list[Regions] = []
        for start in range(0, len(prepared), PHOTOS_AT_ONCE):
            with torch.inference_mode():
                features = self.features(self.pixels(prepared[start : start + PHOTOS_AT_ONCE]))
            regions += [Regions(features=photo, boxes=self.boxes) for photo in features.numpy()]
        return regions

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) scaled pixels -> (B, N, F) float32."""
        grid = self.grid_of(pixels)
        # On the CPU, since MPS does not pool 7 cells to 6.
        places = grid.features.cpu()
        if not grid.patches:
            places = functional.adaptive_avg_pool2d(places, _pooled_size(*places.shape[2:]))
        return places.flatten(2).mT.float().contiguous()


def window_boxes(rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(N, 4) xyxy fractions of the photo, in raster order: windows that average pooling makes of a map.

    rows, columns  (cells, windows) along each axis; where they are as many, a window is a cell
    """
    starts, ends = zip(*(_edges(*axis) for axis in (rows, columns)), strict=True)
    top, left = (grid.ravel() for grid in np.meshgrid(*starts, indexing="ij"))
    bottom, right = (grid.ravel() for grid in np.meshgrid(*ends, indexing="ij"))
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def patch_grid(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, P + height * width, F) tokens -> (B, F, height, width), without the P in front."""
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.mT.reshape(len(tokens), -1, height, width)


def _pooled_size(height: int, width: int) -> tuple[int, int]:
    """Windows along each axis: 6, or as many as there are cells."""
    return min(POOLED_SIDE, height), min(POOLED_SIDE, width)


def _edges(cells: int, windows: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where windows begin and end along an axis, as fractions: as `adaptive_avg_pool2d` cuts them."""
    place = np.arange(windows)
    return place * cells // windows / cells, -(-(place + 1) * cells // windows) / cells
