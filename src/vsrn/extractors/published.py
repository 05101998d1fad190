"""Features that somebody published -> a region store, resumable.

`published_tsv` and `published_arrays` beside this module read them as a `Published`, which is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsrn.data.image_ids import ImageNames
from vsrn.data.photo_splits import made_ready
from vsrn.data.region_store import SkippedPhoto, StoreInfo, open_region_store
from vsrn.data.region_writer import check_split_name, digest_of
from vsrn.data.regions import ARRAYS, RegionNames, Regions
from vsrn.data.shards import SplitHeader
from vsrn.errors import DataError
from vsrn.extractors.batches import cut
from vsrn.extractors.extract import (
    ExtractedBatch,
    ExtractionReport,
    ProgressCallback,
    already_holds,
    captioned_splits,
    check_settings,
    write_split,
)

LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class PublishedImage:
    """One image in somebody's files; an image without regions is skipped.

    place  where it is, as errors name it
    read   gives its regions; boxes are None where they are not known. Raises `DataError` where they are malformed.
    """

    place: str
    num_boxes: int
    read: Callable[[], Regions]


@dataclass(frozen=True)
class Published:
    """The images of somebody's files, in their order.

    images    id and image, each image once
    has_ids   whether these are names; False where they are only the numbers of rows
    names     what the numbers of classes and attributes mean, where the files say it
    split     the split that the file's name tells, such as "test" of test_ims.npz; "" where it tells none
    captions  those that lie beside the features, by id; None without
    info      of the store that the rows are from, empty where they are from none
    notes     sentences for the user about what was passed over
    """

    images: list[tuple[str, PublishedImage]]
    has_ids: bool = True
    names: RegionNames = field(default_factory=RegionNames)
    split: str = ""
    captions: Mapping[str, Sequence[str]] | None = None
    info: StoreInfo = field(default_factory=StoreInfo)
    notes: list[str] = field(default_factory=list)


def import_images(
    published: Published,
    folder: Path | str,
    *,
    dataset: Path | str | None = None,
    splits: Sequence[str] = (),
    restval: bool = False,
    mapping: Mapping[str, str] | None = None,
    float32: bool = False,
    names: RegionNames | None = None,
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> list[ExtractionReport]:
    """Write images into the region store `folder`.

    dataset     captions: their splits are written, in their order; a photo's image is the one that `ImageNames` finds,
                and a photo without one is skipped. Without it, one split of all images in their order, with the
                captions that lie beside the features where there are any.
    splits      those to write; without any, all of which the files have a photo, or the one that the file's name tells,
                or "photos"
    restval     whether `restval` images count as `train`
    mapping     file names of the images' ids (`read_id_mapping`), by which captions may name them
    float32     whether features are kept as float32 instead of float16
    names       of classes and attributes, where the files have none of their own
    batch_size  images finished at a time; what a kill costs at most
    workers     threads that read ahead

    Killed at any moment and called again, it goes on. Raises `DataError` where an image is malformed, where a split
    was made from other images, is not in the data set or has no image in the files, or where the disk is full;
    `ConfigError` where `batch_size` or `workers` is below 1; and what `captioned_splits` raises.
    """
    check_settings(batch_size, workers)
    if names is not None:
        own = published.names
        joined = RegionNames(own.classes or names.classes, own.attributes or names.attributes)
        published = replace(published, names=joined)
    if not any(image.num_boxes for _, image in published.images):
        raise DataError(f"{published.images[0][1].place}: no image has any region; name files that hold features.")
    reports = []
    for split, (rows, captions) in _splits_of(published, dataset, splits, mapping, restval=restval).items():
        check_split_name(split)
        header, batches_from = _source(published, rows, batch_size, workers, float32=float32)
        ids = [name for name, _ in rows]
        report = write_split(
            Path(folder), split, header, ids, batches_from, captions=captions, names=published.names, progress=progress
        )
        if report.already_done:
            _check_same(next(image for _, image in rows if image is not None and image.num_boxes), Path(folder), split)
        reports.append(report)
    return reports


_Rows = list[tuple[str, PublishedImage | None]]


def _splits_of(
    published: Published,
    dataset: Path | str | None,
    splits: Sequence[str],
    mapping: Mapping[str, str] | None,
    *,
    restval: bool,
) -> dict[str, tuple[_Rows, Mapping[str, Sequence[str]] | None]]:
    """Of each split the ids with their images, None for those that have none, and captions by id."""
    if dataset is None:
        return {(splits or [published.split or "photos"])[0]: ([*published.images], published.captions)}
    if not published.has_ids:
        raise DataError(
            f"{published.images[0][1].place}: the rows have no ids, so captions by file name cannot be given to them;"
            " put one id a line into a file named like train_ids.txt beside train_ims.npz, or leave out --captions."
        )
    found = captioned_splits(dataset, splits, restval=restval)
    names = ImageNames(published.images, mapping)
    rows: dict[str, _Rows] = {
        split: [(photo.id, names.find(photo.id, photo.cocoid)) for photo in photos] for split, photos in found.items()
    }
    there = [split for split in found if any(image is not None for _, image in rows[split])]
    absent = next((split for split in found if split not in there), None)
    if absent is not None and (splits or not there):
        raise DataError(
            f"no image of the files is a photo of {dataset}'s split '{absent}': it has photos such as"
            f" {found[absent][0].id}, the files images such as {published.images[0][0]}."
        )
    return {split: (rows[split], {photo.id: photo.captions for photo in found[split]}) for split in there}


def _check_same(first: PublishedImage, folder: Path, split: str) -> None:
    """Raise `DataError` where the first row of a split that was there already has other features than these files."""
    stored = open_region_store(folder, split).read_regions(0).features
    if not np.array_equal(stored, first.read().features.astype(stored.dtype)):
        raise already_holds(folder, split, f"from other features than {first.place}")


def _source(
    published: Published, rows: _Rows, batch_size: int, workers: int, *, float32: bool
) -> tuple[SplitHeader, Callable[[int], Iterator[ExtractedBatch]]]:
    """What `write_split` is told of the images of one split, and where it has their batches from."""
    present = [image for _, image in rows if image is not None and image.num_boxes]
    first = present[0].read()
    feature_dim, carried, kind = first.features.shape[1], carried_by(first), _kind_of(first)

    def read(row: tuple[str, PublishedImage | None]) -> Regions | SkippedPhoto:
        name, image = row
        if image is None:
            return SkippedPhoto(name, f"{name} is not in the files.")
        if not image.num_boxes:
            return SkippedPhoto(name, f"{image.place}: image {name} has no regions.")
        regions = image.read()
        if _kind_of(regions) != kind:
            raise DataError(
                f"{image.place} has {_kind_of(regions)}, but {present[0].place} {kind}; files of different detectors do"
                " not mix."
            )
        if not float32 and np.abs(regions.features).max() > LARGEST_HALF:
            raise DataError(
                f"{image.place}: its features reach beyond {LARGEST_HALF:,.0f}, the most that float16 holds; add"
                " --float32 if they are meant to."
            )
        published.names.check_named(regions)
        return regions

    def batches_from(start: int) -> Iterator[ExtractedBatch]:
        for batch, got in made_ready(cut(rows[start:], batch_size), read, workers):
            pairs = [(name, one) for (name, _), one in zip(batch, got, strict=True) if isinstance(one, Regions)]
            skipped = [one for one in got if isinstance(one, SkippedPhoto)]
            yield ExtractedBatch([name for name, _ in pairs], [regions for _, regions in pairs], skipped)

    optional: dict[str, Any] = {f"has_{array.name}": array.name in carried for array in ARRAYS if array.optional}
    header = SplitHeader(
        published.info.extractor,
        published.info.fingerprint,
        digest_of([name for name, _ in rows]),
        num_regions=max(image.num_boxes for image in present),
        feature_dim=feature_dim,
        has_boxes="boxes" in carried,
        has_ids=published.has_ids,
        float32=float32,
        **optional,
    )
    return header, batches_from


def _kind_of(regions: Regions) -> str:
    return " and ".join([*carried_by(regions)[1:], f"features of {regions.features.shape[1]:,} numbers"])


def carried_by(regions: Regions) -> list[str]:
    """The names of the arrays that these regions have."""
    return [array.name for array, _ in regions.arrays()]
