"""A split made in pieces: which photos are shard i of n, where its files are, and how all of them are read as one.

out/shards/02-of-12/train_ims.npy ...    a region store like any other, of one block of the photos
out/shards/02-of-12/train_shard.json     its `SplitHeader`: which block of which list, by which extractor
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.data.regions import ARRAYS, RegionArray
from vsrn.errors import ConfigError, DataError
from vsrn.files import read_json

SHARDS = "shards"
SHARD_FILE = "_shard.json"
# A file of a finished split, and one of a split that was begun.
FEATURES_FILE, JOURNAL_FILE = "_ims.npy", "_journal.jsonl.partial"
# A process may hold about a thousand files open, and each memory map is one: more shards than this are reopened.
MAPS_OPEN = 64

_FOLDER = re.compile(r"([0-9]+)-of-([0-9]+)")
_OPTION = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of a list of photos.

    number      from 1
    of          how many shards the list is cut into
    batch_size  photos that the extractor is given at a time
    num_photos  length of the whole list
    """

    number: int
    of: int
    batch_size: int
    num_photos: int

    def block(self) -> slice:
        """Its places in the list. Blocks are disjoint, contiguous, complete, and within one batch as long.

        They are cut between batches, as a network's last bits depend on which photos it is given together.

        >>> [Shard(number, 3, batch_size=2, num_photos=9).block() for number in (1, 2, 3)]
        [slice(0, 2, None), slice(2, 6, None), slice(6, 9, None)]
        """
        batches = -(-self.num_photos // self.batch_size)
        start, stop = (batches * number // self.of * self.batch_size for number in (self.number - 1, self.number))
        return slice(min(start, self.num_photos), min(stop, self.num_photos))


class SplitHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a split is made of and by: the first line of its journal, and the `{split}_shard.json` of a shard.

    extractor    its name
    fingerprint  SHA-256 (hex) of its weights and settings
    photos       SHA-256 (hex) of the ids of all photos asked for, in order
    num_regions  N, or the most that a photo has; where one has fewer, `{split}_counts.npy` is written
    feature_dim  F
    has_scores, has_classes, has_attributes, has_boxes  which optional arrays are written
    has_ids      whether `{split}_ids.txt` is written; false where ids are only the numbers of rows
    float32      whether features are kept as float32, not as float16
    shard        which block of `photos` it holds; None for all of them
    merged       true in unfinished splits of earlier versions, which copied shards; such a split is begun again
    """

    extractor: str
    fingerprint: str
    photos: str
    num_regions: int
    feature_dim: int
    has_scores: bool = False
    has_classes: bool = False
    has_attributes: bool = False
    shard: Shard | None = None
    merged: bool = False
    has_boxes: bool = True
    has_ids: bool = True
    float32: bool = False

    def arrays(self) -> list[RegionArray]:
        """The arrays that are written."""
        wide = [replace(array, dtype="<f4") if array.name == "features" and self.float32 else array for array in ARRAYS]
        return [array for array in wide if getattr(self, f"has_{array.name}", True)]

    def difference(self, other: SplitHeader) -> str:
        """How this split was made, and the other was not, for a message."""
        if (self.extractor, self.fingerprint) != (other.extractor, other.fingerprint):
            return f"with another extractor or other weights ({self.extractor} {self.fingerprint[:12]})"
        if self.merged != other.merged:
            return "by an earlier version, which copied shards,"
        mine, theirs = (one.shard.batch_size if one.shard else 0 for one in (self, other))
        if mine != theirs:
            return f"with another --batch-size ({mine}, not {theirs})"
        return "from another list of photos" if self.photos != other.photos else "with regions of another shape"


def read_header(path: Path) -> SplitHeader:
    """Read a shard's `{split}_shard.json`. Raises `DataError` where it is missing or malformed."""
    return read_json(path, SplitHeader, "extract this shard again.")


def parse_shard(option: str) -> tuple[int, int]:
    """`i/n`, such as `3/16`, -> (i, n). Raises `ConfigError` unless 1 <= i <= n."""
    match = _OPTION.fullmatch(option)
    if match is None:
        raise ConfigError(f"--shard is '{option}'; write it as i/n, for instance 3/16.")
    number, of = int(match[1]), int(match[2])
    check_shard(number, of)
    return number, of


def check_shard(number: int, of: int) -> None:
    """Raise `ConfigError` unless 1 <= number <= of."""
    if not 1 <= number <= of:
        raise ConfigError(f"--shard is {number}/{of}; the first of {of} shards is 1/{of} and the last {of}/{of}.")


def shard_folder(store: Path | str, number: int, of: int) -> Path:
    """The region store of one shard, below the store that it is a part of.

    >>> shard_folder("out", 2, 12).as_posix()
    'out/shards/02-of-12'
    """
    return Path(store) / SHARDS / f"{number:0{len(str(of))}}-of-{of}"


def shard_of_folder(folder: Path) -> tuple[int, int] | None:
    """(number, of) of a folder that `shard_folder` names, or None for any other.

    >>> shard_of_folder(Path("out/shards/02-of-12")), shard_of_folder(Path("out/shards/2-of-12"))
    ((2, 12), None)
    """
    number, of = map(int, match.groups()) if (match := _FOLDER.fullmatch(folder.name)) else (0, 0)
    return (number, of) if 1 <= number <= of and folder.name == shard_folder("", number, of).name else None


def splits_in_shards(folder: Path) -> dict[str, set[int]]:
    """Split -> into how many shards it is cut, for every split that a shard of a store holds or has begun."""
    cuts: defaultdict[str, set[int]] = defaultdict(set)
    for path in (folder / SHARDS).glob("*/*"):
        shard = shard_of_folder(path.parent)
        for suffix in (FEATURES_FILE, JOURNAL_FILE):
            if shard is not None and path.name.endswith(suffix):
                cuts[path.name.removesuffix(suffix)].add(shard[1])
    return dict(sorted(cuts.items()))


def whole_shards(folder: Path, split: str) -> list[Path]:
    """The folders of all shards of a split, in order.

    Raises `DataError` where shards are missing or unfinished (all of them, by number), or where their headers differ in
    anything but the shard's number.
    """
    cuts = sorted(splits_in_shards(folder)[split])
    if len(cuts) > 1:
        several = " and ".join(map(str, cuts))
        raise DataError(f"{folder / SHARDS} holds split '{split}' cut into {several} shards; delete one cut's folders.")
    folders = [shard_folder(folder, number, cuts[0]) for number in range(1, cuts[0] + 1)]
    absent = [number for number, part in enumerate(folders, 1) if not (part / f"{split}{FEATURES_FILE}").exists()]
    if absent:
        numbers = f"shard {absent[0]}" if len(absent) == 1 else f"shards {_ranges(absent)}"
        raise DataError(
            f"{folder / SHARDS} is not complete: split '{split}' lacks {numbers} of {cuts[0]};"
            " run `vsrn extract` with --shard for each of them to its end."
        )
    first: SplitHeader | None = None
    for number, part in enumerate(folders, 1):
        header = read_header(path := part / f"{split}{SHARD_FILE}")
        if header.shard is None or (header.shard.number, header.shard.of) != (number, len(folders)):
            raise DataError(f"{path} is of another shard; extract shard {number}/{len(folders)} again.")
        header = msgspec.structs.replace(header, shard=msgspec.structs.replace(header.shard, number=1))
        first = first or header
        if header != first:
            raise DataError(
                f"shard {number} of split '{split}' was made {header.difference(first)} than shard 1;"
                f" delete the wrong one below {folder / SHARDS} and extract it again."
            )
    return folders


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as the array options of batch queues take them.

    >>> _ranges([1, 4, 5, 6, 9, 10])
    '1,4-6,9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


class JoinedRows:
    """The rows of several arrays on disk as one array, by index, slice or (B,) numbers; `MAPS_OPEN` files stay open."""

    def __init__(self, parts: Sequence[npt.NDArray[Any] | JoinedRows]) -> None:
        """Join memory maps of whole files, or what was joined before."""
        self._files: list[tuple[Any, int, tuple[int, ...]]] = []
        for part in parts:
            assert isinstance(part, (np.memmap, JoinedRows)), "rows are read from files"
            files = part._files if isinstance(part, JoinedRows) else [(part.filename, part.offset, part.shape)]
            self._files += files
        self.ends = np.cumsum([shape[0] for _, _, shape in self._files])
        self.dtype: np.dtype[Any] = parts[0].dtype
        self.shape: tuple[int, ...] = (int(self.ends[-1]), *parts[0].shape[1:])
        self.ndim = len(self.shape)
        self._part = functools.lru_cache(maxsize=MAPS_OPEN)(self._open)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        numbers = np.arange(len(self))[rows]
        wanted = np.atleast_1d(numbers)
        gathered = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        places = np.searchsorted(self.ends, wanted, side="right")
        for place in np.unique(places):
            here = places == place
            # Counted from the part's end, which is its number of rows.
            gathered[here] = self._part(int(place))[wanted[here] - self.ends[place]]
        return gathered.reshape(numbers.shape + self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=bool(copy))

    def _open(self, place: int) -> npt.NDArray[Any]:
        name, offset, shape = self._files[place]
        return np.memmap(str(name), self.dtype, "r", offset, shape)
