"""Regions of one image, and the folder that holds the regions of many, memory-mapped.

One split of a region store is a handful of files (docs/data-formats.md):

    {split}_ims.npy      (num_rows, N, F) float16 or float32; (num_rows, F) is read as N = 1
    {split}_ids.txt      optional, one id per row
    {split}_boxes.npy    optional, (num_rows, N, 4) xyxy as fractions of width and height
    {split}_scores.npy   optional, (num_rows, N) detection confidence
    {split}_counts.npy   optional, (num_rows,) real regions of each row; the rest is padding
    {split}_classes.npy, {split}_attributes.npy, {split}_names.json
                         optional, (num_rows, N) numbers of `RegionNames`, -1 for none
    {split}.json         optional, `StoreInfo`: which extractor made the regions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.errors import DataError, did_you_mean

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

CaptionCount = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]

SPLIT_ALIASES = {"val": "dev", "dev": "val"}


@dataclass(frozen=True)
class Regions:
    """What an extractor says of one image.

    features  (N, F) float32
    boxes     (N, 4) float32, xyxy as fractions of the image's width and height
    scores    (N,) float32 detection confidence, falling; None where regions are not detections
    classes   (N,) number of the most probable class; None where nobody says
    attributes  (N,) number of the most probable attribute, -1 where none is likelier; None where nobody says

    N may differ from image to image, where an extractor's `num_regions` is the most.
    """

    features: FloatArray
    boxes: FloatArray
    scores: FloatArray | None = None
    classes: IntArray | None = None
    attributes: IntArray | None = None


class RegionNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What regions may be: the `{split}_names.json` beside the arrays.

    classes     by number, such as "dog"; empty where classes have no names, and then they are not stored
    attributes  by number, such as "brown"; the same
    """

    classes: list[str] = []
    attributes: list[str] = []

    def labels(self, classes: IntArray, attributes: IntArray | None = None) -> list[str]:
        """(N,) numbers, -1 for none -> a label of each region.

        >>> RegionNames(["dog", "sky"], ["brown"]).labels(np.array([0, 1]), np.array([0, -1]))
        ['brown dog', 'sky']
        """
        named = [self.classes[number] if number >= 0 else "" for number in classes]
        if attributes is None:
            return named
        described = [self.attributes[number] if number >= 0 else "" for number in attributes]
        return [f"{how} {what}".strip() for how, what in zip(described, named, strict=True)]

    def labels_of(self, regions: Regions) -> list[str] | None:
        """The same of an image's regions; None where their classes are not known, or have no names.

        Raises `DataError` where a number has no name.
        """
        if regions.classes is None or not self.classes:
            return None
        self.refuse_unnamed(regions)
        return self.labels(regions.classes, regions.attributes if self.attributes else None)

    def refuse_unnamed(self, regions: Regions) -> None:
        """Raise `DataError` where there are names, and not for every number of these regions."""
        for what, names, numbers in (
            ("class", self.classes, regions.classes),
            ("attribute", self.attributes, regions.attributes),
        ):
            if names and numbers is not None and numbers.max(initial=-1) >= len(names):
                raise DataError(
                    f"a region is of {what} {numbers.max()}, but only 0 to {len(names) - 1} have names; give the names"
                    " that belong to the extractor."
                )


class StoreInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `{split}.json` beside the arrays: where the regions come from.

    extractor           name that `vsrn extract --extractor` takes
    fingerprint         SHA-256 (hex) of the extractor's weights and settings
    captions_per_image  one number for all rows, or one number per row; None without captions
    """

    extractor: str = ""
    fingerprint: str = ""
    captions_per_image: CaptionCount | list[CaptionCount] | None = None
    format: int = 1


@dataclass(frozen=True)
class RegionStore:
    """One split of a region store; the features stay on disk until rows are read.

    features  (num_rows, N, F) memory map, float16 or float32
    ids       one per row, or empty
    boxes     (num_rows, N, 4) memory map, or None
    scores    (num_rows, N) memory map, or None
    counts    (num_rows,) real regions of each row, or None where every region is real
    classes, attributes  (num_rows, N) memory maps of numbers of `names`, or None
    """

    folder: Path
    split: str
    features: FloatArray
    ids: list[str] = field(default_factory=list)
    boxes: FloatArray | None = None
    scores: FloatArray | None = None
    counts: IntArray | None = None
    classes: IntArray | None = None
    attributes: IntArray | None = None
    names: RegionNames = field(default_factory=RegionNames)
    info: StoreInfo = field(default_factory=StoreInfo)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_regions(self) -> int:
        """Regions of the longest image, N."""
        return int(self.features.shape[1])

    @property
    def feature_dim(self) -> int:
        """Numbers that describe one region, F."""
        return int(self.features.shape[2])

    def read(self, rows: Sequence[int] | IntArray) -> FloatArray:
        """(B,) row numbers -> (B, N, F) features in the type they have on disk.

        Raises `DataError` where a feature is NaN or infinite, naming the row.
        """
        batch = self.features[np.asarray(rows)]
        if _may_not_be_finite(batch):
            finite = np.isfinite(batch).all(axis=(1, 2))
            if not finite.all():
                row = int(np.asarray(rows)[~finite][0])
                raise DataError(f"{self.where(row)} holds NaN or infinite features; extract that image again.")
        return batch

    def where(self, row: int) -> str:
        """What messages call a row: its file, its number, and its id where there is one."""
        name = f" ({self.ids[row]})" if self.ids else ""
        return f"{self.folder / f'{self.split}_ims.npy'}: row {row}{name}"

    def refuse_zeros(self, rows: Sequence[int] | IntArray, batch: FloatArray, counts: IntArray | None = None) -> None:
        """Raise `DataError` where an image is all zeros, as a detector that failed leaves it, naming the row.

        rows    (B,) rows that were read
        batch   (B, N, F) their features
        counts  (B,) real regions of each, the first ones; None where all are
        """
        place = first_of_zeros(batch, counts)
        if place is not None:
            raise DataError(
                f"{self.where(int(np.asarray(rows)[place]))} is an image of zeros, which the model would divide by"
                " their length of 0; extract that image again, or take its row and its captions out."
            )

    def read_counts(self, rows: Sequence[int] | IntArray) -> IntArray | None:
        """(B,) real regions of each of these rows, or None where every region is real."""
        return None if self.counts is None else np.asarray(self.counts[np.asarray(rows)])

    def labels(self, row: int) -> list[str] | None:
        """What a row's real regions are, such as "brown dog"; None where the store does not say.

        Raises `DataError` where a number has no name.
        """
        if self.classes is None:
            return None
        count = self.num_regions if self.counts is None else int(self.counts[row])
        try:
            attributes = None if self.attributes is None else self.attributes[row, :count]
            return self.names.labels(self.classes[row, :count], attributes)
        except IndexError as error:
            raise DataError(
                f"{self.folder / self.split}_classes.npy or _attributes.npy: row {row} has a number that"
                f" {self.split}_names.json does not name; extract this split again."
            ) from error


def first_of_zeros(batch: FloatArray, counts: IntArray | None = None) -> int | None:
    """(B, N, F) features, (B,) real regions of each or None -> place of the first image of zeros alone, or None."""
    # Only an image whose first region is zeros can be one: one region in N is looked at.
    for place in np.flatnonzero(~batch[:, 0].any(axis=1)):
        if not batch[place, : None if counts is None else counts[place]].any():
            return int(place)
    return None


def pad_regions(regions: Sequence[Regions]) -> tuple[FloatArray, IntArray | None]:
    """Regions of B images -> (B, N, F) features, zeros after each image's own; (B,) counts, None where all have N."""
    counts = np.array([len(image.features) for image in regions])
    if (counts == counts[0]).all():
        return np.stack([image.features for image in regions]), None
    features = np.zeros((len(regions), counts.max(), regions[0].features.shape[1]), dtype=np.float32)
    for row, image in enumerate(regions):
        features[row, : counts[row]] = image.features
    return features, counts


def open_region_store(folder: Path | str, split: str) -> RegionStore:
    """Open one split of a region store without reading its features into memory.

    Raises `DataError` where a file is missing, malformed, or disagrees with the others.
    """
    folder = Path(folder)
    split = resolve_split(folder, split)
    features_path = folder / f"{split}_ims.npy"
    features = map_array(features_path, dims=(2, 3))
    if features.dtype not in (np.float16, np.float32):
        raise DataError(f"{features_path} holds {features.dtype}; features must be float16 or float32.")
    if features.ndim == 2:
        features = features[:, None, :]
    rows = len(features)
    ids_path = folder / f"{split}_ids.txt"
    ids = read_lines(ids_path) if ids_path.exists() else []
    if ids and len(ids) != rows:
        # Some precomputed sets list one id per caption; those say nothing about rows.
        ids = []
    regions = (rows, features.shape[1])
    return RegionStore(
        folder=folder,
        split=split,
        features=features,
        ids=ids,
        boxes=_map_optional(folder / f"{split}_boxes.npy", (*regions, 4)),
        scores=_map_optional(folder / f"{split}_scores.npy", regions),
        counts=_read_counts(folder / f"{split}_counts.npy", regions),
        classes=_map_numbers(folder / f"{split}_classes.npy", regions),
        attributes=_map_numbers(folder / f"{split}_attributes.npy", regions),
        names=_read_names(folder / f"{split}_names.json"),
        info=read_store_info(folder / f"{split}.json"),
    )


def splits_of(folder: Path) -> list[str]:
    """Names of the splits in a region store, sorted."""
    return sorted(path.name.removesuffix("_ims.npy") for path in folder.glob("*_ims.npy"))


def resolve_split(folder: Path, split: str) -> str:
    """The split's name on disk; `val` and `dev` stand for each other.

    Raises `DataError` where the folder is missing, holds no splits, or not this one.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; make a region store with `vsrn extract PHOTOS -o {folder}`.")
    present = splits_of(folder)
    for name in (split, SPLIT_ALIASES.get(split, split)):
        if name in present:
            return name
    if not present:
        raise DataError(
            f"{folder} holds no split: no file is named like train_ims.npy;"
            f" make a region store with `vsrn extract PHOTOS -o {folder}`."
        )
    listed = " and ".join([", ".join(present[:-1]), present[-1]] if len(present) > 1 else present)
    raise DataError(f"{folder} has no split '{split}'; it has {listed}.{did_you_mean(split, present)}")


def read_store_info(path: Path) -> StoreInfo:
    """Read `{split}.json`; a store without one has an empty `StoreInfo`."""
    if not path.exists():
        return StoreInfo()
    try:
        return msgspec.json.decode(path.read_bytes(), type=StoreInfo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; extract this split again.") from error


def _read_names(path: Path) -> RegionNames:
    if not path.exists():
        return RegionNames()
    try:
        return msgspec.json.decode(path.read_bytes(), type=RegionNames)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; extract this split again.") from error


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file. Raises `DataError` naming the first line that is not UTF-8."""
    lines = path.read_bytes().split(b"\n")
    if lines and not lines[-1].strip():
        lines.pop()
    decoded = []
    for number, line in enumerate(lines, start=1):
        try:
            decoded.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 text; save the file as UTF-8.") from error
    return decoded


def _may_not_be_finite(batch: FloatArray) -> bool:
    """A quick look at every number, since every batch is looked at; it may cry wolf, never sleep."""
    if batch.dtype == np.float16:
        # The exponent of what is not finite is all ones. Half precision has no fast arithmetic; integers have.
        return bool(((batch.view(np.uint16) & 0x7FFF).max(initial=0)) >= 0x7C00)
    # The sum is finite unless a term is not, or the terms overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        return not np.isfinite(batch.sum())


def map_array(path: Path, dims: tuple[int, ...]) -> FloatArray:
    """Memory-map a `.npy` file of so many dimensions. Raises `DataError` where it is anything else."""
    try:
        with np.errstate(over="ignore"):  # of sizes that no file has
            # Unlike np.load, this opens no archive and no pickle.
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        # A header is an expression of Python; a wrong one raises SyntaxError, OverflowError, MemoryError and others.
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not a readable .npy array ({said}); it may be truncated.") from error
    if array.ndim not in dims:
        wanted = " or ".join(str(dim) for dim in dims)
        raise DataError(f"{path} must hold one array of {wanted} dimensions (images, regions, features).")
    return array


def _map_optional(path: Path, shape: tuple[int, ...]) -> FloatArray | None:
    if not path.exists():
        return None
    array = map_array(path, dims=(len(shape),))
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {array.dtype}; it must hold numbers.")
    if array.shape != shape:
        raise DataError(f"{path} has shape {array.shape}, but the features beside it call for {shape}.")
    return array


def _map_numbers(path: Path, shape: tuple[int, int]) -> IntArray | None:
    array = _map_optional(path, shape)
    if array is not None and array.dtype.kind != "i":
        raise DataError(f"{path} holds {array.dtype}; it must hold whole numbers, -1 for none.")
    return cast("IntArray | None", array)


def _read_counts(path: Path, regions: tuple[int, int]) -> IntArray | None:
    if not path.exists():
        return None
    rows, longest = regions
    counts = np.asarray(map_array(path, dims=(1,)))
    whole = counts.dtype.kind in "iu" and counts.shape == (rows,)
    if not whole or counts.min(initial=1) < 1 or counts.max(initial=1) > longest:
        raise DataError(f"{path} must hold {rows} whole numbers between 1 and {longest}, one per row.")
    return counts.astype(np.int64)
