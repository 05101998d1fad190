"""A split whose images are photos: for models that read pixels, without a region store."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsrn.captions.annotations import read_annotations
from vsrn.captions.karpathy import CaptionedPhoto
from vsrn.errors import DataError, did_you_mean
from vsrn.regions.listing import PhotoNames
from vsrn.regions.pixels import Pixels, View
from vsrn.regions.store import SPLIT_ALIASES, IntArray
from vsrn.splits import captions_of


@dataclass(frozen=True)
class PhotoSplit:
    """Photos with their captions, decoded when they are asked for; what `Split` is for regions.

    ids               path of each photo below the folder, in Unicode's NFC form
    captions          one string per caption
    image_of_caption  (num_captions,) which of this split's photos a caption belongs to
    view              how a photo becomes a square
    names             finds the photos' files
    """

    folder: Path
    name: str
    ids: list[str]
    captions: list[str]
    image_of_caption: IntArray
    view: View
    names: PhotoNames

    @property
    def num_images(self) -> int:
        """How many photos there are."""
        return len(self.ids)

    def image_ids(self) -> list[str]:
        """One id per photo."""
        return self.ids

    def path(self, image: int) -> Path:
        """The file of a photo."""
        return self.names.path(self.ids[image])

    def read_images(self, images: IntArray) -> tuple[Pixels, None]:
        """(B,) photos -> (B, S, S, 3) uint8, the middle of each. Raises `PhotoError` where one cannot be read."""
        with decoding_threads() as pool:
            return np.stack(list(pool.map(self.view.read_middle, [self.path(image) for image in images]))), None

    def only(self, images: IntArray) -> PhotoSplit:
        """The split reduced to these photos, in this order, with their captions."""
        captions, image_of_caption = captions_of(images, self.captions, self.image_of_caption)
        ids = [self.ids[image] for image in images]
        return PhotoSplit(self.folder, self.name, ids, captions, image_of_caption, self.view, self.names)


def open_photo_split(
    photos: Path | str, annotations: Path | str, split: str, view: View, *, restval: bool = False
) -> PhotoSplit:
    """Open a split of captioned photos; `val` and `dev` stand for each other.

    Raises `DataError` where the captions are malformed, have no such split, or name a photo that is not there.
    """
    folder, splits = Path(photos), read_annotations(annotations, restval=restval)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name the folder that holds the photos.")
    name = next((known for known in (split, SPLIT_ALIASES.get(split, split)) if known in splits), None)
    if name is None:
        raise DataError(
            f"{annotations} has no split '{split}'; it has {', '.join(sorted(splits))}.{did_you_mean(split, splits)}"
        )
    names = PhotoNames(folder)
    _refuse_missing(names, splits[name], annotations)
    return PhotoSplit(
        folder,
        name,
        ids=[photo.id for photo in splits[name]],
        captions=[caption for photo in splits[name] for caption in photo.captions],
        image_of_caption=np.repeat(np.arange(len(splits[name])), [len(photo.captions) for photo in splits[name]]),
        view=view,
        names=names,
    )


def decoding_threads() -> ThreadPoolExecutor:
    """Threads that decode photos: one for each processor that this process may use."""
    return ThreadPoolExecutor(_processors(), thread_name_prefix="decode")


def _processors() -> int:
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _refuse_missing(names: PhotoNames, photos: list[CaptionedPhoto], annotations: Path | str) -> None:
    missing = [photo.id for photo in photos if not names.path(photo.id).is_file()]
    if missing:
        raise DataError(
            f"{annotations} names {len(missing):,} photos that {names.folder} does not have, such as {missing[0]};"
            " check the folder."
        )
