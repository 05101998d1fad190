"""Does an extractor make the features that somebody already has? What `vsrn compare` asks.

Whoever has an extractor's weights but cannot be sure of them, or of the recipe, extracts a few photos and holds
them against features of the same photos. Regions are compared in pairs: a detector's order of nearly equal
confidences depends on the last bits of a JPEG decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from vsrn.data.annotations import CaptionedPhoto, as_image_id, possible_names, read_karpathy
from vsrn.data.listing import PhotoFile, PhotoNames, find_photos
from vsrn.data.region_store import RegionStore, map_features, open_region_store
from vsrn.data.regions import Regions
from vsrn.errors import ConfigError, DataError
from vsrn.extractors.base import RegionExtractor, prepare_photo
from vsrn.extractors.extract import choose_splits
from vsrn.metrics import FloatArray

# Two regions agree that differ by less than this share of their length: 0.1 is a cosine of 0.995.
AGREE_WITHIN = 0.1
# The features are the same ones when so many regions agree; a few are lost or won at the edge of the selection.
SAME_FROM = 0.9


@dataclass(frozen=True)
class PhotoComparison:
    """One photo's regions, extracted here (ours) and from the file (theirs), paired by greatest cosine.

    row                 of the file
    num_agreeing        pairs that differ by less than `AGREE_WITHIN`
    num_in_place        those of them that have the same place in both
    mean_cosine         over all pairs
    smallest_cosine     over all pairs
    largest_difference  over all pairs, |ours - theirs| / |theirs|
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


@dataclass(frozen=True)
class Comparison:
    """Several photos compared.

    by_ids  whether rows were found by the ids beside the file, or by their order
    """

    photos: list[PhotoComparison]
    by_ids: bool

    @property
    def agreeing(self) -> float:
        """Share of all regions that agree; one without a partner does not."""
        return sum(photo.num_agreeing for photo in self.photos) / sum(
            max(photo.num_ours, photo.num_theirs) for photo in self.photos
        )

    @property
    def in_place(self) -> float:
        """Share of the agreeing regions that have the same place in both."""
        agreeing = sum(photo.num_agreeing for photo in self.photos)
        return sum(photo.num_in_place for photo in self.photos) / agreeing if agreeing else 0.0

    @property
    def same(self) -> bool:
        """Whether these are the same features, but for a few regions."""
        return self.agreeing >= SAME_FROM


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
) -> tuple[list[PhotoFile], list[CaptionedPhoto]]:
    """The photos of a folder, or of a JSON's split with their entries there.

    Raises `ConfigError` where the JSON has several splits and none is named, or one is named without a JSON.
    """
    if captions is None:
        if split is not None:
            raise ConfigError("--split is one of a JSON's; name it with --captions.")
        return [photo for photo in find_photos(folder, follow_links=follow_links) if photo.refusal is None], []
    found = read_karpathy(captions, restval=restval)
    wanted = choose_splits(captions, found, () if split is None else (split,))
    if len(wanted) > 1:
        raise ConfigError(f"{captions} has several splits; name the one of the features with --split {wanted[-1]}.")
    names = PhotoNames(folder)
    captioned = found[wanted[0]]
    return [PhotoFile(photo.id, names.path(photo.id)) for photo in captioned], captioned


def find_rows(
    photos: Sequence[PhotoFile], existing: RegionStore, captioned: Sequence[CaptionedPhoto] = ()
) -> tuple[list[tuple[PhotoFile, int]], bool]:
    """Photos with their rows, and whether these were found by id.

    captioned  the photos' entries in a JSON, in the same order, where there is one: they know COCO's numbers

    Where the file's ids name none of the photos, the rows are the photos in their order, each as often as rows
    divide by photos. Raises `DataError` where they do not.
    """
    row_of = {as_image_id(name): row for row, name in reversed(list(enumerate(existing.ids)))}
    numbers = [photo.cocoid for photo in captioned] or [None] * len(photos)
    pairs = []
    for photo, number in zip(photos, numbers, strict=True):
        name = next((name for name in possible_names(photo.id, number) if name in row_of), None)
        if name is not None:
            pairs.append((photo, row_of[name]))
    if pairs:
        return pairs, True
    rows = len(existing)
    if rows == 0 or rows % len(photos):
        raise DataError(
            f"{_file(existing)} has {rows:,} rows for {len(photos):,} photos, and no ids beside it name them;"
            " name a folder, or with --captions and --split the split, of just its photos."
        )
    return [(photo, place * (rows // len(photos))) for place, photo in enumerate(photos)], False


def compare(
    pairs: Sequence[tuple[PhotoFile, int]],
    existing: RegionStore,
    extractor: RegionExtractor,
    *,
    by_ids: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Extract photos and compare each with its row.

    Raises `PhotoError` where a photo cannot be read, and `DataError` where features have other sizes.
    """
    if existing.feature_dim != extractor.feature_dim:
        raise DataError(
            f"{_file(existing)} has features of {existing.feature_dim} numbers, the extractor '{extractor.name}'"
            f" makes {extractor.feature_dim}; compare with features of its kind."
        )
    compared = []
    for photo, row in pairs:
        (ours,) = extractor([prepare_photo(extractor, photo.path)])
        compared.append(compare_regions(photo.id, row, ours.features, _real_regions(existing, row)))
        advance(1)
    return Comparison(compared, by_ids)


def compare_regions(photo_id: str, row: int, ours: FloatArray, theirs: FloatArray) -> PhotoComparison:
    """(n, F) regions against (m, F): the pairs are those of greatest cosine, greatest first."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    lengths, their_lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    cosines = (ours @ theirs.T) / np.maximum(np.outer(lengths, their_lengths), 1e-12)
    ours_at, theirs_at = _pairs(cosines)
    differences = np.linalg.norm(ours[ours_at] - theirs[theirs_at], axis=1) / np.maximum(
        their_lengths[theirs_at], 1e-12
    )
    agreeing = differences < AGREE_WITHIN
    paired = cosines[ours_at, theirs_at]
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


def _pairs(cosines: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rows and columns of the greatest number, of the greatest among the other rows and columns, and so on."""
    left = cosines.copy()
    rows, columns = [], []
    for _ in range(min(cosines.shape)):
        row, column = np.unravel_index(left.argmax(), left.shape)
        rows.append(row)
        columns.append(column)
        left[row, :] = left[:, column] = -np.inf
    return np.array(rows), np.array(columns)


def _real_regions(existing: RegionStore, row: int) -> FloatArray:
    features = existing.read_regions(row).features
    if existing.counts is not None:
        return features
    # Files without counts pad with zeros, if at all.
    real = np.flatnonzero(features.any(axis=1))
    return features[: real[-1] + 1 if len(real) else 1]


def _file(existing: RegionStore) -> Path:
    named = existing.folder / f"{existing.split}_ims.npy"
    return named if named.exists() else existing.folder / f"{existing.split}.npy"
