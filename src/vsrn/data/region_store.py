"""The folder that holds the regions of many images, memory-mapped; docs/data-formats.md describes its files."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.data.image_ids import read_row_ids
from vsrn.data.other_forms import remedy_for_folder, remedy_for_split, why_no_array
from vsrn.data.regions import ARRAYS, RegionArray, RegionNames, Regions, first_of_zeros, may_not_be_finite, native
from vsrn.data.shards import FEATURES_FILE, SHARD_FILE, JoinedRows, read_header, splits_in_shards, whole_shards
from vsrn.errors import DataError, did_you_mean, one_line
from vsrn.files import read_json
from vsrn.metrics import FloatArray, IntArray

CaptionCount = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
SPLIT_ALIASES = {"val": "dev", "dev": "val"}
_Page = TypeVar("_Page")


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

    def caption_counts(self, rows: int) -> list[int] | None:
        """How many captions each of so many rows has; None without captions."""
        stated = self.captions_per_image
        return [stated] * rows if isinstance(stated, int) else stated


class SkippedPhoto(msgspec.Struct, frozen=True, omit_defaults=True):
    """A photo that has no row, and the sentence that says why.

    kind  a `vsrn.errors.SkipKind`; "" where a version wrote it that did not keep the kind
    """

    id: str
    reason: str
    kind: str = ""


@dataclass(frozen=True)
class RegionStore:
    """One split of a region store, whose arrays stay on disk until rows are read.

    A pickle holds its folder and its name alone: another process opens the files, which may be larger than memory.

    regions  arrays of (num_rows, N, ...), memory maps or `JoinedRows` of them; features are floats of any size
    ids      one per row, or empty
    caption_ids  id of the image of each caption, where the file of ids lists them so; else empty
    counts   (num_rows,) real regions of each row, or None where every region is real
    parts    folder and first row of each shard, where the split lies in shards
    """

    folder: Path
    split: str
    regions: Regions
    ids: list[str] = field(default_factory=list)
    caption_ids: list[str] = field(default_factory=list)
    counts: IntArray | None = None
    names: RegionNames = field(default_factory=RegionNames)
    info: StoreInfo = field(default_factory=StoreInfo)
    parts: tuple[tuple[Path, int], ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def __reduce__(self) -> tuple[object, ...]:
        return open_region_store, (self.folder.absolute(), self.split)

    @property
    def features(self) -> FloatArray:
        """(num_rows, N, F) floats in the type they have on disk; `read` gives float16 or float32."""
        return self.regions.features

    @property
    def boxes(self) -> FloatArray | None:
        """(num_rows, N, 4) xyxy as fractions of width and height, or None where the store has none."""
        return self.regions.boxes

    @property
    def num_regions(self) -> int:
        """Regions of the longest image, N."""
        return int(self.features.shape[1])

    @property
    def feature_dim(self) -> int:
        """Numbers that describe one region, F."""
        return int(self.features.shape[2])

    def read(self, rows: Sequence[int] | IntArray) -> FloatArray:
        """(B,) row numbers -> (B, N, F) features, float16 where they are on disk, else float32.

        Raises `DataError` where a feature is NaN or infinite, naming the row.
        """
        batch = native(self.features[np.asarray(rows)])
        if may_not_be_finite(batch) and not (finite := np.isfinite(batch).all(axis=(1, 2))).all():
            row = int(np.asarray(rows)[~finite][0])
            raise DataError(f"{self.where(row)} holds NaN or infinite features; extract that image again.")
        return batch

    def read_regions(self, row: int) -> Regions:
        """The real regions of one row, with everything that they carry. Raises what `read` raises."""
        count = self.num_regions if self.counts is None else int(self.counts[row])
        real: dict[str, Any] = {array.name: native(stored[row])[:count] for array, stored in self.regions.arrays()}
        return replace(self.regions, **real | {"features": self.read([row])[0, :count]})

    def where(self, row: int) -> str:
        """What messages call a row: its file, its number there, and its id where there is one."""
        name = f" ({self.ids[row]})" if self.ids else ""
        folder, first = self.folder, 0
        if self.parts:
            folder, first = self.parts[bisect.bisect_right([first for _, first in self.parts], row) - 1]
        return f"{folder / self.split}{FEATURES_FILE}: row {row - first}{name}"

    def check_zeros(self, rows: Sequence[int] | IntArray, batch: FloatArray, counts: IntArray | None = None) -> None:
        """Raise `DataError`, naming the row, where an image is all zeros, as a detector that failed leaves it.

        rows    (B,) rows that were read
        batch   (B, N, F) their features; `counts` (B,) the real ones of each, which are first, or None for all
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


def open_region_store(folder: Path | str, split: str) -> RegionStore:
    """Open one split of a region store, also one that lies in shards or in `precomp`; its arrays stay on disk.

    Raises `DataError` where a file or a shard is missing, malformed, or disagrees with the others.
    """
    folder = Path(folder)
    precomp = folder / "precomp"  # where VSE-infinity and others keep the splits
    if precomp.is_dir() and splits_of(precomp) and not splits_of(folder):
        folder = precomp
    split = resolve_split(folder, split)
    folders = folders_of(folder, split)
    if folders != [folder]:
        return _joined(folder, split, [_open_shard(part, split) for part in folders])
    return store_around(map_features(folder / f"{split}{FEATURES_FILE}"), folder, split)


def folders_of(folder: Path, split: str) -> list[Path]:
    """The folders of a split's files: the store's own, or its shards', in order. Raises what `whole_shards` raises."""
    return [folder] if (folder / f"{split}{FEATURES_FILE}").exists() else whole_shards(folder, split)


def store_around(features: FloatArray, folder: Path, split: str) -> RegionStore:
    """A store of features, (num_rows, N, F), and a split's other files. Raises `DataError` where they do not fit."""
    ids, caption_ids = read_row_ids(folder / f"{split}_ids.txt", features)
    size = features.shape[0], features.shape[1]
    arrays: dict[str, Any] = {
        array.name: _map_optional(folder / f"{split}{array.suffix}", (*size, *array.shape), array)
        for array in ARRAYS
        if array.suffix != FEATURES_FILE
    }
    return RegionStore(
        folder=folder,
        split=split,
        regions=Regions(features=features, **arrays),
        ids=ids,
        caption_ids=caption_ids,
        counts=_read_counts(folder / f"{split}_counts.npy", size),
        names=_read_page(folder / f"{split}_names.json", RegionNames) or RegionNames(),
        info=read_store_info(folder / f"{split}.json"),
    )


def _open_shard(folder: Path, split: str) -> RegionStore:
    store = store_around(map_features(folder / f"{split}{FEATURES_FILE}"), folder, split)
    shard, skipped = read_header(folder / f"{split}{SHARD_FILE}").shard, read_skipped(folder / f"{split}_skipped.json")
    assert shard is not None
    photos = shard.block().stop - shard.block().start
    if len(store.ids) != len(store) or len(store) + len(skipped) != photos:
        raise DataError(
            f"{folder} does not hold the {photos} photos of its shard;"
            f" delete it and extract shard {shard.number}/{shard.of} again."
        )
    # Nothing of a shard stays open: there may be more of them than files that a process may open.
    closed: dict[str, Any] = {array.name: JoinedRows([values]) for array, values in store.regions.arrays()}
    return replace(store, regions=Regions(**closed))


def _joined(folder: Path, split: str, shards: Sequence[RegionStore]) -> RegionStore:
    """One store of all shards' rows, as one process would have written it."""
    firsts = np.cumsum([0, *(len(shard) for shard in shards)]).tolist()
    if not firsts[-1]:
        raise DataError(f"none of the photos of split '{split}' in {folder / 'shards'} could be read.")
    captions = [shard.info.caption_counts(len(shard)) for shard in shards if len(shard)]
    if len({of_shard is None for of_shard in captions}) > 1:
        raise DataError(f"only some shards of split '{split}' have captions; extract all of them alike.")
    flat = [count for of_shard in captions if of_shard is not None for count in of_shard]
    arrays: dict[str, Any] = {
        array.name: JoinedRows([getattr(shard.regions, array.name) for shard in shards])
        for array, _ in shards[0].regions.arrays()
    }
    counts = [np.full(len(one), one.num_regions) if one.counts is None else one.counts for one in shards]
    return RegionStore(
        folder=folder,
        split=split,
        regions=Regions(**arrays),
        ids=[name for shard in shards for name in shard.ids],
        counts=np.concatenate(counts) if any(one.counts is not None for one in shards) else None,
        names=shards[0].names,
        info=msgspec.structs.replace(shards[0].info, captions_per_image=per_image(flat) if flat else None),
        parts=tuple((shard.folder, first) for shard, first in zip(shards, firsts, strict=False)),
    )


def splits_of(folder: Path) -> list[str]:
    """Names of the splits in a region store, sorted."""
    whole = {path.name.removesuffix(FEATURES_FILE) for path in folder.glob(f"*{FEATURES_FILE}")}
    return sorted(whole | splits_in_shards(folder).keys())


def resolve_split(folder: Path, split: str) -> str:
    """The split's name on disk; `val` and `dev` stand for each other. Raises `DataError` where there is none."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; make a region store with `vsrn extract PHOTOS -o {folder}`.")
    present = splits_of(folder)
    for name in (split, SPLIT_ALIASES.get(split, split)):
        if name in present:
            return name
    if not present:
        raise DataError(
            f"{folder} holds no split: no file is named like train_ims.npy; {remedy_for_folder(folder, split)}"
        )
    listed = " and ".join([", ".join(present[:-1]), present[-1]] if len(present) > 1 else present)
    hint = remedy_for_split(folder, split)
    more = f" {hint[0].upper()}{hint[1:]}" if hint else did_you_mean(split, present)
    raise DataError(f"{folder} has no split '{split}'; it has {listed}.{more}")


def read_store_info(path: Path) -> StoreInfo:
    """Read `{split}.json`; a store without one has an empty `StoreInfo`. Raises `DataError` where it is malformed."""
    return _read_page(path, StoreInfo) or StoreInfo()


def read_skipped(path: Path) -> list[SkippedPhoto]:
    """Read `{split}_skipped.json`; without one, nothing was skipped. Raises `DataError` where it is malformed."""
    return _read_page(path, list[SkippedPhoto]) or []


def _read_page(path: Path, kind: type[_Page]) -> _Page | None:
    return read_json(path, kind, "extract this split again.") if path.exists() else None


def map_array(path: Path, dims: tuple[int, ...]) -> FloatArray:
    """Memory-map a `.npy` file of so many dimensions. Raises `DataError` where it is anything else."""
    try:
        with np.errstate(over="ignore"):  # of sizes that no file has
            # Unlike np.load, this opens no archive and no pickle.
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        # A header is an expression of Python; a wrong one raises SyntaxError, OverflowError, MemoryError and others.
        if known := why_no_array(path):
            raise DataError(known) from error
        raise DataError(f"{path} is not a readable .npy array ({one_line(error)}); it may be truncated.") from error
    if array.ndim not in dims:
        wanted = " or ".join(str(dim) for dim in dims)
        raise DataError(f"{path} must hold one array of {wanted} dimensions (images, regions, features).")
    return array


def map_features(path: Path) -> FloatArray:
    """Memory-map features, (num_rows, N, F) or (num_rows, F), which is N = 1. Raises `DataError` for other arrays."""
    features = map_array(path, dims=(2, 3))
    if features.dtype.kind != "f":
        # What the package ml_dtypes calls bfloat16, numpy writes as two bytes of no type.
        what = "bfloat16, which .npy cannot name" if features.dtype == np.dtype("V2") else str(features.dtype)
        raise DataError(f"{path} holds {what}; features must be float16 or float32, so save them as such.")
    return features[:, None, :] if features.ndim == 2 else features


def _map_optional(path: Path, shape: tuple[int, ...], array: RegionArray) -> npt.NDArray[Any] | None:
    if not path.exists():
        return None
    values = map_array(path, dims=(len(shape),))
    if values.dtype.kind not in ("i" if array.named else "fiu"):
        wanted = "whole numbers, -1 for none" if array.named else "numbers"
        raise DataError(f"{path} holds {values.dtype}; it must hold {wanted}.")
    if values.shape != shape:
        raise DataError(f"{path} has shape {values.shape}, but the features beside it call for {shape}.")
    return values


def _read_counts(path: Path, regions: tuple[int, int]) -> IntArray | None:
    if not path.exists():
        return None
    rows, longest = regions
    counts = np.asarray(map_array(path, dims=(1,)))
    whole = counts.dtype.kind in "iu" and counts.shape == (rows,)
    if not whole or counts.min(initial=1) < 1 or counts.max(initial=1) > longest:
        raise DataError(f"{path} must hold {rows} whole numbers between 1 and {longest}, one per row.")
    return counts.astype(np.int64)


def per_image(counts: Sequence[int]) -> int | list[int]:
    """How a store says how many captions its images have: one number where all have as many."""
    return counts[0] if counts and len(set(counts)) == 1 else list(counts)
