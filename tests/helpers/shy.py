"""An extractor that shows where photos were cut into batches, and stores made with it, whole and in shards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vsrn.cli import main
from vsrn.data.listing import PhotoFile
from vsrn.data.regions import RegionNames, Regions
from vsrn.extractors.base import ExtractorFiles, Prepared
from vsrn.extractors.extract import ExtractionReport, extract

# In batches of 3, the second and third batch hold no photo that can be read.
UNREADABLE = {1, 3, 4, 5, 6, 7, 8, 20}
NUM_PHOTOS, BATCH = 22, 3


class Shy:
    """An extractor whose regions depend, as a network's last bits do, on which photos it is given together.

    Every other photo of a batch has one region, the rest have two.
    """

    name, num_regions, feature_dim, has_scores, photo_size = "shy", 2, 3, True, 8
    files = ExtractorFiles()
    names = RegionNames(["dark", "light", "red"], ["plain"])

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        self.fingerprint = fingerprint

    def prepare(self, photo: Image.Image) -> Prepared:
        return np.asarray(np.asarray(photo, np.float32).mean(axis=(0, 1)))

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        together = np.float32(sum(float(photo.sum()) for photo in prepared))
        return [
            Regions(
                features=np.stack([photo, np.add(photo, together)]).astype(np.float32)[: 1 + place % 2],
                boxes=np.full((1 + place % 2, 4), place, np.float32),
                scores=np.asarray([together, place], np.float32)[: 1 + place % 2],
                classes=np.asarray([int(photo.sum()) % 3, 1])[: 1 + place % 2],
                attributes=np.asarray([-1, place % 2 - 1])[: 1 + place % 2],
            )
            for place, photo in enumerate(prepared)
        ]


def save_photos(folder: Path) -> list[PhotoFile]:
    """One colour each, and those in UNREADABLE no photo at all."""
    for number in range(NUM_PHOTOS):
        Image.new("RGB", (8, 8), (number, 5 * number, 200 - number)).save(folder / f"{number:02}.png")
    for number in UNREADABLE:
        (folder / f"{number:02}.png").write_bytes(b"no photo" * number)
    return [PhotoFile(f"{number:02}.png", folder / f"{number:02}.png") for number in range(NUM_PHOTOS)]


def captions_of(photos: Sequence[PhotoFile]) -> dict[str, list[str]]:
    """From one to four each."""
    return {
        photo.id: [f"caption {n} of {photo.id}" for n in range(place % 4 + 1)] for place, photo in enumerate(photos)
    }


def extract_part(
    photos: Sequence[PhotoFile],
    folder: Path,
    shard: tuple[int, int] | None = None,
    *,
    extractor: Shy | None = None,
    bare: bool = False,
    batch_size: int = BATCH,
) -> ExtractionReport:
    captions = None if bare else captions_of(photos)
    return extract(photos, extractor or Shy(), folder, "train", captions=captions, shard=shard, batch_size=batch_size)


def extract_shards(photos: Sequence[PhotoFile], folder: Path, of: int, *, bare: bool = False) -> None:
    numbers = list(range(1, of + 1))
    random.Random(of).shuffle(numbers)
    for number in numbers:
        extract_part(photos, folder, (number, of), bare=bare)


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a store itself, without its shards."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def vsrn_extract(*arguments: str | Path) -> int:
    """Run `vsrn extract`; its exit code."""
    return vsrn("extract", *arguments)


def vsrn(*arguments: str | Path) -> int:
    """Run a command; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code
    raise AssertionError("the command line always exits")
