"""The folder of an index: names of its files, and the page that says what it was made of.

    index.json           `IndexInfo`, written last: a folder without one is no index yet
    records.sqlite       what is known of each photo (`records.py`, `database.py`)
    vectors-G.f16        (num_rows, D) float16, one row a photo
    regions-G.bin        of each photo: features (N, F) float16, boxes (N, 4) float32, scores (N,) float32 if any,
                         and where they have names, classes (N,) int16 and attributes (N,) int16, -1 for none
    thumbnails-G.bin     JPEGs, one behind the other
    graph-G-ROWS.faiss   links of the HNSW graph over the first rows, in large indexes
    model/               the encoders, as `vsrn export --onnx` writes them
    lock                 held by whoever adds to the index

G is the generation. Files of a generation only grow; compaction writes those of the next. Every file is a regular
file: whoever opens an index may have it from a stranger, so no link in it is followed.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.data.regions import ARRAYS, RegionArray, RegionNames, Regions
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import SearchError
from vsrn.files import open_plain, read_at, read_plain, take_lock, write_at, write_atomically
from vsrn.metrics import FloatArray
from vsrn.search.records import PhotoRecord, State

INFO_FILE = "index.json"
RECORDS_FILE = "records.sqlite"
MODEL_FOLDER = "model"
LOCK_FILE = "lock"
MILVUS_FILE = "milvus.db"
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(-wal|-shm)?")
GROWING = ("vectors", "regions", "thumbnails")
JPEG_START = b"\xff\xd8\xff"
# Vectors are halves: rounding 512 numbers changes a length of 1 by less than 1e-3.
LENGTH_TOLERANCE = 0.01

EngineName = Literal["faiss", "milvus"]
Size = Annotated[int, msgspec.Meta(ge=1)]


class IndexInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `index.json` of an index.

    name         names its collection where vectors are also kept by a server
    model        fingerprint of the encoders, as in the model's `export.json`
    joint_dim    D, numbers per vector
    feature_dim  F, numbers per region
    explain      whether regions are kept, which explanations need
    names        what their classes and attributes are called; those without names are not kept
    engine       what searches the vectors
    uri          of a Milvus server or a Milvus Lite file; empty for a file in the index
    files        SHA-256 (hex) of each file of the model; empty in older indexes, whose files are not checked
    """

    name: str
    model: str
    joint_dim: Size
    feature_dim: Size
    explain: bool
    engine: EngineName = "faiss"
    uri: str = ""
    names: RegionNames = msgspec.field(default_factory=RegionNames)
    files: dict[str, str] = {}
    format: Literal[1] = 1


class UnreadableInfoError(SearchError):
    """The index.json of a folder is missing, or not what `vsrn index` writes."""


def read_info(folder: Path) -> IndexInfo:
    """Read `index.json`. Raises `UnreadableInfoError` where the folder is no index, or not one of ours."""
    path = folder / INFO_FILE
    try:
        return parse_info(read_plain(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableInfoError(
            f"{folder} is not an index: it has no {INFO_FILE}; make one with `vsrn index PHOTOS -o {folder}`."
        ) from error
    except OSError as error:
        raise UnreadableInfoError(str(not_ours(path, error))) from error
    except ValueError as error:
        raise UnreadableInfoError(
            f"{path} is not what `vsrn index` writes ({error}); put a copy back, or delete this one file, and"
            f" `vsrn index PHOTOS -o {folder}` makes it again from the rest of the index."
        ) from error


def parse_info(content: bytes) -> IndexInfo:
    """The text of an `index.json`. Raises `ValueError` where it is another's."""
    try:
        return msgspec.json.decode(content, type=IndexInfo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def write_info(folder: Path, info: IndexInfo) -> None:
    """Write `index.json`, whole or not at all."""
    write_atomically(folder / INFO_FILE, info_as_json(info))


def info_as_json(info: IndexInfo) -> bytes:
    """The text of its `index.json`."""
    return msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n"


def growing_path(folder: Path, kind: str, generation: int) -> Path:
    """One of the three files that grow."""
    return folder / f"{kind}-{generation}.{'f16' if kind == 'vectors' else 'bin'}"


def open_vectors(folder: Path, info: IndexInfo, state: State) -> FloatArray:
    """(num_rows, D) float16, memory-mapped. Raises `SearchError` where the file is cut short or no regular file.

    Raises `FileNotFoundError` where a compaction has replaced it: read the state again.
    """
    path = growing_path(folder, "vectors", state.generation)
    shape, size = (state.num_rows, info.joint_dim), 2 * state.num_rows * info.joint_dim
    if not state.num_rows:
        # The file itself may not be there yet.
        return np.empty(shape, dtype=np.float16)
    with opened(path) as descriptor:
        if os.fstat(descriptor).st_size < size:
            raise SearchError(f"{path} is shorter than the records say; {REMEDY}")
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype="<f2").reshape(shape)


def read_piece(path: Path, start: int, size: int, crc: int | None = None) -> bytes:
    """Bytes of a growing file; `crc` is their CRC-32, where it is known.

    Raises `SearchError` where they are not there, or are not those that were written.
    """
    with opened(path) as descriptor:
        there = os.fstat(descriptor).st_size
        content = read_at(descriptor, size, start) if start + size <= there else b""
    if len(content) != size:
        raise SearchError(f"{path} is shorter than the records say; {REMEDY}")
    if crc is not None and zlib.crc32(content) != crc:
        raise SearchError(f"{path} is damaged: a piece of it is not what was written; {REMEDY}")
    return content


REMEDY = "`vsrn index PHOTOS -o INDEX` mends it, reading again only the photos concerned."


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor for the block. Raises `SearchError` where `path` is a link, and `FileNotFoundError`."""
    try:
        descriptor = open_plain(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise not_ours(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def regions_size(photo: PhotoRecord, info: IndexInfo) -> int:
    """Bytes that a photo's regions take."""
    return sum(math.prod(shape) * np.dtype(array.dtype).itemsize for array, shape in _kept(photo, info))


def pack_regions(regions: Regions, names: RegionNames) -> bytes:
    """Regions as bytes; features are rounded to half precision. Raises `DataError` where a number has no name."""
    names.check_named(regions)
    packed = []
    for array in ARRAYS:
        values = getattr(regions, array.name)
        if getattr(names, array.name) if array.named else values is not None:
            filler = np.full(len(regions.boxes), array.filler)
            packed.append((filler if values is None else values).astype(array.dtype).tobytes())
    return b"".join(packed)


def unpack_regions(content: bytes, photo: PhotoRecord, info: IndexInfo) -> Regions:
    """What `pack_regions` packed: float32 (N, F) features, (N, 4) boxes, and the rest, (N,), where there was any."""
    values: dict[str, npt.NDArray[Any]] = {}
    start = 0
    for array, shape in _kept(photo, info):
        kept = np.frombuffer(content, array.dtype, math.prod(shape), offset=start).reshape(shape)
        values[array.name] = kept
        start += kept.nbytes
    return Regions(**{**values, "features": values["features"].astype(np.float32)})


def _kept(photo: PhotoRecord, info: IndexInfo) -> Iterator[tuple[RegionArray, tuple[int, ...]]]:
    """The arrays that are kept of a photo's regions, in order, and their shapes."""
    for array in ARRAYS:
        named = array.named and bool(getattr(info.names, array.name))
        if named or (not array.named and (not array.optional or getattr(photo, f"has_{array.name}"))):
            yield array, (photo.num_regions, *array.row_shape(info.feature_dim))


def piece_of(kind: str, photo: PhotoRecord, info: IndexInfo) -> tuple[int, int, int | None] | None:
    """First byte, number of bytes and CRC-32 of what a photo has in a file; None where the index keeps none."""
    if kind == "vectors":
        return 2 * info.joint_dim * photo.row, 2 * info.joint_dim, photo.vector_crc
    if kind == "regions":
        return None if photo.regions_at is None else (photo.regions_at, regions_size(photo, info), photo.regions_crc)
    return photo.thumbnail_at, photo.thumbnail_size, photo.thumbnail_crc


def lengths_are_wrong(vectors: FloatArray, *, normalised: bool) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(n, D) vectors -> (n,) True where one is not finite or, where the model's are, not of length 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.asarray(vectors, dtype=np.float32)
        squares = np.einsum("nd,nd->n", wide, wide)
        if not normalised:
            return ~np.isfinite(squares)
        return ~(np.abs(np.sqrt(squares) - 1) < LENGTH_TOLERANCE)


class GrowingFile:
    """A file of which the first `end` bytes are acknowledged; bytes after those were never acknowledged."""

    def __init__(self, path: Path, end: int) -> None:
        """Open `path`, made where it is missing, and bring it to `end` bytes.

        A longer file is cut. A shorter one has lost what its records still name: it is filled up with zeros, and
        whoever checks it (`vsrn.search.mend`) finds them. Raises `SearchError` where `path` is a link or no file.
        """
        self.path, self.end = path, end
        try:
            self._file = io.FileIO(open_plain(path, os.O_RDWR | os.O_CREAT), "r+")
        except OSError as error:
            raise not_ours(path, error) from error
        if self.status().st_size != end:  # a cut to the same size would change the file's time
            self._file.truncate(end)

    def append(self, content: bytes) -> int:
        """Write `content` after everything else; gives the place of its first byte."""
        start, rest = self.end, memoryview(content)
        while rest:
            written = write_at(self._file.fileno(), rest, self.end + len(content) - len(rest))
            rest = rest[written:]
        self.end += len(content)
        return start

    def rewind(self, end: int) -> None:
        """Forget what stands after `end`: the next piece is written over it."""
        self.end = end

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._file.fileno())

    def status(self) -> os.stat_result:
        """Size, time and inode of the file."""
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def not_ours(path: Path, error: OSError) -> SearchError:
    """The error for a file of an index that is a link, no regular file, or may not be opened."""
    return SearchError(
        f"{path} cannot be used ({error.strerror}); the files of an index are regular files that `vsrn index` made, so"
        " do not use an index whose files are links or devices, and check the permissions of your own."
    )


def open_model(folder: Path, info: IndexInfo, device: str = "auto") -> OnnxEncoder:
    """The model inside an index.

    device  where its extractor and captioner compute: `cpu`, `cuda`, `mps` or `auto`

    Raises `SearchError` where it is another, or index.json does not agree with it, and `CheckpointError` where one
    of its files is missing, broken, a link, or not the file that the index was made with.
    """
    place = folder / MODEL_FOLDER
    if place.is_symlink():
        raise SearchError(f"{place} is a link, which `vsrn index` never makes; do not use this index.")
    encoder = OnnxEncoder.load(place, checksums=info.files, device=device)
    if encoder.info.model != info.model:
        raise SearchError(
            f"{place} ({encoder.info.model[:12]}) is not the model that the index was made by ({info.model[:12]});"
            f" `vsrn index PHOTOS -o {folder} --model MODEL`, with that model, puts it back."
        )
    for name in ("joint_dim", "feature_dim"):
        said, known = getattr(info, name), getattr(encoder.info, name)
        if said != known:
            raise SearchError(
                f"{folder / INFO_FILE} was changed: it says {name} {said}, and the model has {known}; put the number"
                f" back, or delete this one file, and `vsrn index PHOTOS -o {folder}` makes it again."
            )
    return encoder


class IndexLock:
    """Held by the one process that writes to an index, until `release`."""

    def __init__(self, folder: Path) -> None:
        """Take it, and clear what killed writers left. Raises `SearchError` where another process holds it."""
        try:
            self.release = take_lock(folder / LOCK_FILE)
        except BlockingIOError as error:
            raise SearchError(f"{folder} is being written by another vsrn index; wait for it or stop it.") from error
        except OSError as error:
            raise not_ours(folder / LOCK_FILE, error) from error
        for leftover in folder.iterdir():
            if _TEMPORARY.fullmatch(leftover.name):
                _delete(leftover)


def _delete(path: Path) -> None:
    """Delete what a killed writer left: a file, or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
