"""Photos as squares of pixels, for networks that read no regions: the middle of each, or a random part.

A random part depends on the caption it is drawn for, the epoch and the seed alone, whichever thread draws it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms.v2 import functional

from vsrn.config import NetworkConfig
from vsrn.regions.photos import decode_photo

Pixels = npt.NDArray[np.uint8]

# Shape of a random crop, width to height, and tries to find one that fits: torchvision's, which VSE++ used.
NARROWEST, WIDEST = 3 / 4, 4 / 3
TRIES = 10


@dataclass(frozen=True)
class View:
    """How a photo becomes a square.

    photo_size     shorter side, in pixels, before the middle is cut out
    crop_size      side of the square, S
    smallest_crop  least share of the photo's area that a random crop covers; 1 takes the middle in training too
    """

    photo_size: int = 256
    crop_size: int = 224
    smallest_crop: float = 0.08

    @classmethod
    def of(cls, network: NetworkConfig) -> View:
        """The view that a network's config asks for."""
        return cls(network.photo_size, network.crop_size, network.smallest_crop)

    def middle(self, photo: Image.Image) -> Pixels:
        """An RGB photo -> (S, S, 3): brought to size, and its middle."""
        resized = functional.resize(photo, [self.photo_size])
        return np.array(functional.center_crop(resized, [self.crop_size]))

    def random_part(self, photo: Image.Image, generator: np.random.Generator) -> Pixels:
        """An RGB photo -> (S, S, 3): a random part of random shape, brought to size, and half of them mirrored."""
        if self.smallest_crop == 1:
            return self.middle(photo)
        top, left, height, width = random_box(photo.height, photo.width, self.smallest_crop, generator)
        part = functional.resized_crop(photo, top, left, height, width, [self.crop_size, self.crop_size])
        return np.array(functional.horizontal_flip(part) if generator.random() < 0.5 else part)

    def read_middle(self, path: Path) -> Pixels:
        """`middle` of a photo file. Raises `PhotoError` where it cannot be read."""
        return self.middle(decode_photo(path, target_size=self.photo_size))

    def read_random_part(self, path: Path, *seeds: int) -> Pixels:
        """`random_part` of a photo file, the same for the same seeds. Raises `PhotoError`."""
        photo = decode_photo(path, target_size=self.photo_size)
        return self.random_part(photo, np.random.default_rng(seeds))


def random_box(height: int, width: int, smallest: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a photo, as torchvision's `RandomResizedCrop` draws them.

    Its own draws come from one generator for the whole process, which threads would race for.
    """
    for _ in range(TRIES):
        area = height * width * generator.uniform(smallest, 1)
        shape = math.exp(generator.uniform(math.log(NARROWEST), math.log(WIDEST)))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    # The photo is too long or too tall: the largest middle part of a permitted shape.
    w, h = min(width, round(height * WIDEST)), min(height, round(width / NARROWEST))
    return (height - h) // 2, (width - w) // 2, h, w
