"""A split whose images are photos, for models that read pixels; and opening whichever kind a model reads."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vsrn.config import Config, NetworkConfig
from vsrn.data.annotations import choose_split, read_annotations
from vsrn.data.listing import PhotoNames
from vsrn.data.photos import decode_photo
from vsrn.data.pictures import Photo, picture_of
from vsrn.data.splits import CaptionedImages, open_split
from vsrn.errors import ConfigError, DataError
from vsrn.metrics import IntArray

Pixels = npt.NDArray[np.uint8]

# Shape of a random crop, width to height, and tries to find one that fits: torchvision's, which VSE++ used.
NARROWEST, WIDEST = 3 / 4, 4 / 3
TRIES = 10
# Batches that threads make ready ahead of a network.
BATCHES_AHEAD = 2
_Item = TypeVar("_Item")
_Ready = TypeVar("_Ready")


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
        width, height = (int(self.photo_size * side / min(photo.size)) for side in photo.size)
        left, top = round((width - self.crop_size) / 2), round((height - self.crop_size) / 2)
        resized = photo.resize((width, height), Image.Resampling.BILINEAR)
        return np.array(resized.crop((left, top, left + self.crop_size, top + self.crop_size)))

    def random_part(self, photo: Image.Image, generator: np.random.Generator) -> Pixels:
        """An RGB photo -> (S, S, 3): a random part of random shape, brought to size, and half of them mirrored."""
        if self.smallest_crop == 1:
            return self.middle(photo)
        top, left, height, width = random_box(photo.height, photo.width, self.smallest_crop, generator)
        part = photo.crop((left, top, left + width, top + height))
        square = part.resize((self.crop_size, self.crop_size), Image.Resampling.BILINEAR)
        return np.array(ImageOps.mirror(square) if generator.random() < 0.5 else square)

    def read_middle(self, photo: Photo) -> Pixels:
        """`middle` of a photo in any form. Raises `PhotoError` where it cannot be read."""
        return self.middle(picture_of(photo, self.photo_size))

    def read_random_part(self, path: Path, *seeds: int) -> Pixels:
        """`random_part` of a photo file, the same for the same seeds. Raises `PhotoError` where it cannot be read."""
        photo = decode_photo(path, target_size=self.photo_size)
        return self.random_part(photo, np.random.default_rng(seeds))


def random_box(height: int, width: int, smallest: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a photo, as torchvision's `RandomResizedCrop` draws them."""
    # Its own draws come from one generator for the whole process, which threads would race for.
    for _ in range(TRIES):
        area = height * width * generator.uniform(smallest, 1)
        shape = math.exp(generator.uniform(math.log(NARROWEST), math.log(WIDEST)))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    # The photo is too long or too tall: the largest middle part of a permitted shape.
    w, h = min(width, round(height * WIDEST)), min(height, round(width / NARROWEST))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class PhotoSplit(CaptionedImages):
    """Photos with their captions, decoded when they are asked for; what `Split` is for regions.

    files    of the photos that `rows` counts; the ids are their paths below the folder, in Unicode's NFC form
    view     how a photo becomes a square
    workers  threads that decode photos; None for one for each processor that this process may use
    """

    files: list[Path]
    view: View
    workers: int | None = None

    def path(self, image: int) -> Path:
        """The file of a photo."""
        return self.files[self.rows[image]]

    def read_images(self, images: IntArray) -> tuple[Pixels, None]:
        """(B,) photos -> (B, S, S, 3) uint8, the middle of each. Raises `PhotoError` where one cannot be read."""
        paths = [self.path(int(image)) for image in images]
        _, middles = next(made_ready([paths], self.view.read_middle, self.workers))
        return np.stack(middles), None


def open_photo_split(
    photos: Path | str,
    annotations: Path | str,
    split: str,
    view: View,
    *,
    restval: bool = False,
    workers: int | None = None,
) -> PhotoSplit:
    """Open a split of captioned photos. Raises `DataError` where captions are malformed or photos are missing."""
    folder, splits = Path(photos), read_annotations(annotations, restval=restval)
    name = choose_split(annotations, splits, split)
    names, listed = PhotoNames(folder), splits[name]
    found = [names.find(photo.id, photo.cocoid) for photo in listed]
    missing = [photo.id for photo, path in zip(listed, found, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{annotations} names {len(missing):,} photos that {folder} does not have, such as {missing[0]};"
            " check the folder."
        )
    return PhotoSplit(
        folder,
        name,
        rows=np.arange(len(listed)),
        captions=[caption for photo in listed for caption in photo.captions],
        image_of_caption=np.repeat(np.arange(len(listed)), [len(photo.captions) for photo in listed]),
        ids=[photo.id for photo in listed],
        files=[path for path in found if path is not None],
        view=view,
        workers=workers,
    )


def made_ready(
    batches: Iterable[Sequence[_Item]],
    make: Callable[[_Item], _Ready],
    workers: int | None = None,
    batches_ahead: int = BATCHES_AHEAD,
    pool: Executor | None = None,
) -> Iterator[tuple[Sequence[_Item], list[_Ready]]]:
    """Batches in order, with what `make` made of each item; threads work `batches_ahead` batches ahead.

    workers  how many threads; None for one for each processor
    pool     who works instead of threads; it is shut down in the end
    """
    pool = pool or ThreadPoolExecutor(workers or processors(), thread_name_prefix="decode")
    ahead: deque[tuple[Sequence[_Item], list[Future[_Ready]]]] = deque()

    def take() -> tuple[Sequence[_Item], list[_Ready]]:
        batch, futures = ahead.popleft()
        return batch, [future.result() for future in futures]

    try:
        for batch in batches:
            ahead.append((batch, [pool.submit(make, item) for item in batch]))
            if len(ahead) > batches_ahead:
                yield take()
        while ahead:
            yield take()
    finally:
        pool.shutdown(cancel_futures=True)


def processors() -> int:
    """How many processors this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def seen_by(split: CaptionedImages, network: NetworkConfig) -> CaptionedImages:
    """A split of photos as another network's settings bring them to size."""
    assert isinstance(split, PhotoSplit)
    return replace(split, view=View.of(network))


def open_split_for(
    config: Config,
    split: str,
    *,
    data: Path | str | None = None,
    photos: Path | str | None = None,
    workers: int | None = None,
) -> CaptionedImages:
    """Open a split as the config's model reads it; `val` and `dev` stand for each other.

    data     region store, or captions of photos, instead of the config's own
    photos   folder of photos, instead of the config's own
    workers  threads that decode photos; None for one for each processor

    Raises `ConfigError` where nothing says where the data is, and `DataError` where it cannot be read.
    """
    if not config.model.network.name:
        if not (data or config.data.path):
            raise ConfigError(
                "data.path is not set: name the folder of a region store with captions (`vsrn evaluate` takes it as"
                " --data)."
            )
        return open_split(data or config.data.path, split).in_order(config.data.region_order)
    data, photos = data or config.data.annotations, photos or config.data.photos
    if not data or not photos:
        raise ConfigError(
            "this model reads photos, and nobody says where they are: set data.photos to their folder and"
            " data.annotations to their captions (`vsrn evaluate` takes them as --photos and --data)."
        )
    view = View.of(config.model.network)
    return open_photo_split(photos, data, split, view, restval=config.data.restval, workers=workers)
