"""Does an extractor make the features that somebody already has of the same photos? What `vsrn compare` asks.

Regions are compared in pairs, since a JPEG decoder's last bits decide a detector's order of nearly equal confidences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from vsrn.data.annotations import CaptionedPhoto
from vsrn.data.image_ids import ImageNames, read_id_mapping
from vsrn.data.listing import PhotoNames, find_photos
from vsrn.data.region_store import RegionStore, map_features, open_region_store
from vsrn.data.regions import Regions
from vsrn.errors import ConfigError, DataError
from vsrn.extractors.base import RegionExtractor, prepare_photo
from vsrn.extractors.extract import captioned_splits
from vsrn.metrics import FloatArray

# Two regions agree that differ by less than this share of their length: 0.1 is a cosine of 0.995.
AGREE_WITHIN = 0.1


@dataclass(frozen=True)
class PhotoComparison:
    """One photo's regions, extracted here (ours) and from a row of the file (theirs), paired by greatest cosine.

    num_agreeing        pairs that differ by less than `AGREE_WITHIN`
    num_in_place        those of them that have the same place in both
    largest_difference  |ours - theirs| / |theirs|, of all pairs as the cosines are
    """

    id: str
    row: int
    num_ours: int
    num_theirs: int
    num_agreeing: int
    num_in_place: int
    mean_cosine: float
    smallest_cosine: float
    largest_difference: float


def open_existing(path: Path | str) -> RegionStore:
    """Features of somebody's: `{split}_ims.npy` with what lies beside it, or any array of that shape.

    Raises `DataError` where it is not (num_rows, N, F) or (num_rows, F), float16 or float32.
    """
    path = Path(path)
    if path.name.endswith("_ims.npy") and path.is_file():
        return open_region_store(path.parent, path.name.removesuffix("_ims.npy"))
    return RegionStore(path.parent, path.stem, Regions(features=map_features(path), boxes=cast("FloatArray", None)))


def photos_to_compare(
    folder: Path, captions: Path | None, split: str | None, *, restval: bool = False, follow_links: bool = False
) -> list[tuple[CaptionedPhoto, Path]]:
    """The photos of a folder, or of a split of captions, and their files.

    Raises `ConfigError` where the captions have several splits and none is named, or one is named without captions.
    """
    if captions is None:
        if split is not None:
            raise ConfigError("--split is one of a file of captions; name it with --captions.")
        listed = find_photos(folder, follow_links=follow_links)
        return [(CaptionedPhoto(photo.id, []), photo.path) for photo in listed if photo.refusal is None]
    found = captioned_splits(captions, () if split is None else (split,), restval=restval)
    if len(found) > 1:
        raise ConfigError(f"{captions} has several splits; name the one of the features with --split {[*found][-1]}.")
    names, (photos,) = PhotoNames(folder), found.values()
    return [(photo, names.find(photo.id, photo.cocoid) or folder / photo.id) for photo in photos]


def find_rows(photos: Sequence[CaptionedPhoto], existing: RegionStore) -> tuple[list[int | None], bool]:
    """The row of each photo or None, and whether rows were found by id.

    Where the store's ids name none of the photos, the rows are the photos in their order, each as often as rows
    divide by photos. Raises `DataError` where they do not.
    """
    names = ImageNames(((name, row) for row, name in enumerate(existing.ids)), read_id_mapping(existing.folder))
    rows = [names.find(photo.id, photo.cocoid) for photo in photos]
    if any(row is not None for row in rows):
        return rows, True
    if not len(existing) or len(existing) % len(photos):
        raise DataError(
            f"the features have {len(existing):,} rows for {len(photos):,} photos, and no ids beside them name these;"
            " name a folder, or with --captions and --split the split, of just their photos."
        )
    return list(range(0, len(existing), len(existing) // len(photos))), False


def compare(
    photos: Sequence[tuple[CaptionedPhoto, Path, int]],
    existing: RegionStore,
    extractor: RegionExtractor,
    advance: Callable[[int], None] = lambda _: None,
) -> list[PhotoComparison]:
    """Extract photos, given with their files and rows, and compare each with its row.

    Raises `PhotoError` where a photo cannot be read, and `DataError` where features have other sizes.
    """
    if existing.feature_dim != extractor.feature_dim:
        raise DataError(
            f"{existing.folder / existing.split} has features of {existing.feature_dim} numbers, the extractor"
            f" '{extractor.name}' makes {extractor.feature_dim}; compare with features of its kind."
        )
    compared = []
    for photo, path, row in photos:
        (ours,) = extractor([prepare_photo(extractor, path)])
        theirs = existing.read_regions(row).features
        if existing.counts is None:
            # Files without counts pad with zeros, if at all.
            theirs = theirs[: np.flatnonzero(theirs.any(axis=1)).max(initial=0) + 1]
        compared.append(compare_regions(photo.id, row, ours.features, theirs))
        advance(1)
    return compared


def compare_regions(photo_id: str, row: int, ours: FloatArray, theirs: FloatArray) -> PhotoComparison:
    """(n, F) regions against (m, F): the pairs are those of greatest cosine, greatest first."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    lengths, their_lengths = (np.maximum(np.linalg.norm(each, axis=1), 1e-12) for each in (ours, theirs))
    cosines = (ours @ theirs.T) / np.outer(lengths, their_lengths)
    left, pairs = cosines.copy(), []
    for _ in range(min(cosines.shape)):
        pairs.append(np.unravel_index(left.argmax(), left.shape))
        left[pairs[-1][0], :] = left[:, pairs[-1][1]] = -np.inf
    ours_at, theirs_at = np.array(pairs).T
    differences = np.linalg.norm(ours[ours_at] - theirs[theirs_at], axis=1) / their_lengths[theirs_at]
    agreeing, paired = differences < AGREE_WITHIN, cosines[ours_at, theirs_at]
    return PhotoComparison(
        id=photo_id,
        row=row,
        num_ours=len(ours),
        num_theirs=len(theirs),
        num_agreeing=int(agreeing.sum()),
        num_in_place=int((agreeing & (ours_at == theirs_at)).sum()),
        mean_cosine=float(paired.mean()),
        smallest_cosine=float(paired.min()),
        largest_difference=float(differences.max()),
    )
