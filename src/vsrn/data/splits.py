"""A split: the regions of some images, their captions, and which caption belongs to which image."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from vsrn.config import RegionOrder
from vsrn.data.image_ids import ImageNames, images_of_rows, read_id_mapping
from vsrn.data.region_store import RegionStore, folders_of, open_region_store
from vsrn.errors import DataError
from vsrn.files import normal_name, read_lines
from vsrn.metrics import FloatArray, IntArray

AnySplit = TypeVar("AnySplit", bound="CaptionedImages")
_NAMED_CAPTION = re.compile(r"\S[^\t]*(#[0-9]+|\.(jpe?g|png|webp))\t", re.IGNORECASE)


def reading_places(features: FloatArray, counts: IntArray | None, order: RegionOrder) -> IntArray:
    """(B, N, F) regions, (B,) real ones of each or None for all -> (B, N) places in the order they are read.

    Padded regions stay last. A shuffled order is that of checksums of their features, rounded to float16: random, and
    yet the same in whatever batch, split or file an image is met, also when some regions are taken out. From the
    centre of a grid, regions at the same distance are read in raster order.

    >>> reading_places(np.ones((1, 4, 2)), np.array([3]), "reversed")
    array([[2, 1, 0, 3]])
    >>> reading_places(np.ones((1, 9, 2)), None, "centre-out")
    array([[4, 1, 3, 5, 7, 0, 2, 6, 8]])

    Raises `DataError` where an order from the centre is asked for and the regions are not those of a square grid.
    """
    B, N = features.shape[:2]
    places = np.tile(np.arange(N), (B, 1))
    if order == "stored":
        return places
    if order in ("centre-out", "centre-in"):
        side, fewest = math.isqrt(N), N if counts is None else int(counts.min(initial=N))
        if fewest < N or side * side < N:
            raise DataError(
                f'an image has {fewest} regions, which are no square grid; data.region_order = "{order}" is for a'
                " grid's windows."
            )
        # Twice the distance from the middle, so that it is whole and ties are exact.
        along = 2 * np.arange(side) - (side - 1)
        outwards = np.argsort((along[:, None] ** 2 + along**2).ravel(), kind="stable")
        return np.broadcast_to(outwards if order == "centre-out" else outwards[::-1], places.shape)
    for image, row in enumerate(places):
        real = N if counts is None else int(counts[image])
        if order == "reversed":
            row[:real] = row[:real][::-1]
        else:
            with np.errstate(over="ignore"):
                rounded = np.ascontiguousarray(features[image, :real], np.float16)
            row[:real] = np.argsort([zlib.crc32(region.data) for region in rounded])
    return places


def in_order(features: FloatArray, counts: IntArray | None, order: RegionOrder) -> FloatArray:
    """(B, N, F) regions as stored, (B,) real ones of each or None for all -> the same, in the order they are read."""
    return features if order == "stored" else at_places(features, reading_places(features, counts, order))


def at_places(regions: FloatArray, places: IntArray) -> FloatArray:
    """(B, N, D) values of regions as stored, (B, N) `reading_places` -> the same, as read."""
    # Whole regions are copied: an eighth of the time of np.take_along_axis, which looks each number up.
    return np.asarray(regions[np.arange(len(regions))[:, None], places])


def back_in_place(regions: FloatArray, places: IntArray) -> FloatArray:
    """The inverse of `at_places`: (B, N, D) values of regions as read, (B, N) places -> the same, as stored."""
    return at_places(regions, places.argsort(axis=1))


@dataclass(frozen=True)
class CaptionedImages:
    """A split, whether its images are regions (`Split`) or photos; each image appears once, whatever lies on disk.

    folder            where the images are
    name              of the split, on disk
    rows              (num_images,) place of each image among those on disk
    captions          one string per caption
    image_of_caption  (num_captions,) which of this split's images a caption belongs to
    ids               one per image; none where images are only numbered on disk
    """

    folder: Path
    name: str
    rows: IntArray
    captions: list[str]
    image_of_caption: IntArray
    ids: list[str]

    @property
    def num_images(self) -> int:
        """How many different images there are."""
        return len(self.rows)

    @property
    def has_ids(self) -> bool:
        """Whether images have ids on disk, and are not just numbered."""
        return bool(self.ids)

    def image_ids(self) -> list[str]:
        """One id per image: those on disk, or the row number where there are none."""
        return self.ids or [str(row) for row in self.rows]

    def captions_by_image(self) -> list[list[str]]:
        """The captions of each image, in their order."""
        grouped: list[list[str]] = [[] for _ in range(self.num_images)]
        for image, caption in zip(self.image_of_caption, self.captions, strict=True):
            grouped[image].append(caption)
        return grouped

    def read_images(self, images: IntArray) -> tuple[npt.NDArray[Any], IntArray | None]:
        """(B,) images -> what an image encoder reads of them, and (B,) real regions of each or None."""
        raise NotImplementedError

    def only(self, images: IntArray) -> Self:
        """The split reduced to these images, in this order, with their captions."""
        place = np.full(self.num_images, -1)
        place[images] = np.arange(len(images))
        kept = np.flatnonzero(place[self.image_of_caption] >= 0)
        captions = [self.captions[caption] for caption in kept]
        owners = place[self.image_of_caption[kept]]
        ids = [self.ids[image] for image in images] if self.ids else []
        return replace(self, rows=self.rows[images], captions=captions, image_of_caption=owners, ids=ids)


@dataclass(frozen=True)
class Split(CaptionedImages):
    """A split of a region store.

    region_order  order in which an image's regions are read
    zeros_divide  whether an image of zeros is refused when it is read, for a model that would make 0 / 0 of it
    """

    regions: RegionStore
    region_order: RegionOrder = "stored"
    zeros_divide: bool = False

    def read_images(self, images: IntArray) -> tuple[FloatArray, IntArray | None]:
        """(B,) images -> (B, N, F) features, (B,) real regions of each or None. Raises `DataError` for a bad row."""
        rows = self.rows[images]
        features, counts = self.regions.read(rows), self.regions.read_counts(rows)
        if self.zeros_divide:
            self.regions.check_zeros(rows, features, counts)
        return in_order(features, counts, self.region_order), counts

    def in_order(self, order: RegionOrder) -> Split:
        """The split with the regions of its images read in this order, whatever order they were read in before."""
        return replace(self, region_order=order)


def open_split(folder: Path | str, split: str) -> Split:
    """Open a split with its captions. Raises `DataError` where its files are missing or malformed, or do not fit."""
    regions = open_region_store(folder, split)
    captions = read_split_captions(regions.folder, regions.split)
    rows, image_of_caption = images_of_rows(regions, regions.folder / f"{regions.split}_caps.txt", len(captions))
    ids = [regions.ids[row] for row in rows] if regions.ids else []
    return Split(regions.folder, regions.split, rows, captions, image_of_caption, ids, regions)


def read_split_captions(folder: Path, split: str) -> list[str]:
    """All captions of a split of a region store, also of one that lies in shards. Raises what `read_captions` does."""
    paths = [part / f"{split}_caps.txt" for part in folders_of(folder, split)]
    # Of a shard whose photos were all skipped, the file is empty.
    filled = [path for path in paths if not path.exists() or path.stat().st_size]
    return [caption for path in filled or paths[:1] for caption in read_captions(path)]


def read_captions(path: Path) -> list[str]:
    """One caption per line. Raises `DataError` where the file is missing or a caption is empty."""
    if not path.exists():
        raise DataError(
            f"there is no {path}: this split has regions but no captions;"
            " extract the photos with `vsrn extract --captions dataset.json`."
        )
    captions = read_lines(path)
    if captions and all(map(_NAMED_CAPTION.match, captions)):
        raise DataError(
            f"{path} names a photo on every line, as Flickr's .token does, and a store's captions stand alone; give"
            " that file to `vsrn extract --captions` or `vsrn import --captions`, or cut the names off."
        )
    for number, caption in enumerate(captions, start=1):
        if not caption:
            raise DataError(f"{path}, line {number}: the caption is empty; write one or remove its image.")
    if not captions:
        raise DataError(f"{path} holds no captions; it needs one per line.")
    return captions


def hold_out(split: AnySplit, list_path: Path) -> tuple[AnySplit, AnySplit]:
    """The split without, and with only, the images that the file lists, one per line, by any name of `ImageNames`.

    Raises `DataError` where the file is missing, a listed id is not in the split, or all are.
    """
    if not list_path.exists():
        raise DataError(f"there is no list of held-out images {list_path}.")
    listed = sorted({normal_name(name) for name in read_lines(list_path) if name})
    places = {name: place for place, name in enumerate(split.image_ids())}
    # Without ids on disk, numbers of rows are listed, which are no names of files.
    find = ImageNames(places.items(), read_id_mapping(split.folder)).find if split.has_ids else places.get
    found = {name: find(name) for name in listed}
    unknown = [name for name in listed if found[name] is None]
    if unknown:
        raise DataError(
            f"{list_path} lists {len(unknown)} images that split '{split.name}' of {split.folder}"
            f" does not have, such as {unknown[0]}."
        )
    chosen = np.array(sorted({place for place in found.values() if place is not None}), dtype=np.int64)
    rest = np.setdiff1d(np.arange(split.num_images), chosen)
    if not len(chosen) or not len(rest):
        raise DataError(f"{list_path} must list some of the images of split '{split.name}', not none or all.")
    return split.only(rest), split.only(chosen)
