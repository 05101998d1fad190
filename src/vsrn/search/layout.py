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

G is the generation. Files of a generation only grow; compaction writes those of the next. An index may come from a
stranger: no link in it is followed, and every file must be a regular one.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.data.regions import ARRAYS, RegionArray, RegionNames, Regions
from vsrn.encoders.onnx_backend import OnnxEncoder, Size
from vsrn.errors import SearchError
from vsrn.files import delete, open_plain, read_at, read_plain, take_lock, write_all, write_atomically
from vsrn.metrics import FloatArray
from vsrn.search.records import REMEDY, PhotoRecord, State

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
# Sharp on a screen of two pixels to a point, in tiles 200 points high; and what the first indexes have.
THUMBNAIL_SIDE, OLD_THUMBNAIL_SIDE = 512, 256
LEAST_THUMBNAIL_SIDE, MOST_THUMBNAIL_SIDE = 64, 1024
ThumbnailSide = Annotated[int, msgspec.Meta(ge=LEAST_THUMBNAIL_SIDE, le=MOST_THUMBNAIL_SIDE)]


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
    thumbnail_side  pixels of a thumbnail's longer side (`vsrn.search.reading.thumbnail`); 256 in older indexes
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
    thumbnail_side: ThumbnailSide = OLD_THUMBNAIL_SIDE
    format: Literal[1] = 1

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the `index.json` of a folder. Raises `SearchError` where it is no index, or not one of ours."""
        path = folder / INFO_FILE
        try:
            return cls.parse(read_plain(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SearchError(
                f"{folder} is not an index: it has no {INFO_FILE}; make one with `vsrn index PHOTOS -o {folder}`."
            ) from error
        except OSError as error:
            raise not_ours(path, error) from error
        except ValueError as error:
            raise SearchError(
                f"{path} is not what `vsrn index` writes ({error}); put a copy back, or delete this one file, and"
                f" `vsrn index PHOTOS -o {folder}` makes it again from the rest of the index."
            ) from error

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read its text. Raises `ValueError` where it is another's."""
        try:
            return msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error

    def write(self, folder: Path) -> None:
        """Write the `index.json` of a folder, whole or not at all."""
        write_atomically(folder / INFO_FILE, self.as_json())

    def as_json(self) -> bytes:
        """Its text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def growing_path(folder: Path, kind: str, generation: int) -> Path:
    """One of the three files that grow."""
    return folder / f"{kind}-{generation}.{'f16' if kind == 'vectors' else 'bin'}"


def open_vectors(folder: Path, info: IndexInfo, state: State) -> FloatArray:
    """(num_rows, D) float16, memory-mapped.

    Raises `SearchError` where the file is cut short or no regular file, and `FileNotFoundError` where a compaction has
    replaced it: read the state again.
    """
    if not state.num_rows:
        # The file itself may not be there yet.
        return np.empty((0, info.joint_dim), dtype=np.float16)
    with GrowingFile(folder, "vectors", info, state) as file:
        if file.status().st_size < file.end:
            raise SearchError(f"{file.path} is shorter than the records say; {REMEDY}")
        mapped = mmap.mmap(file.fileno(), file.end, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype="<f2").reshape(state.num_rows, info.joint_dim)


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


def piece_of(kind: str, photo: PhotoRecord, info: IndexInfo) -> tuple[int, int, int | None]:
    """First byte, number of bytes and CRC-32 of what a photo has in a file; 0 bytes where the index keeps none."""
    if kind == "vectors":
        return 2 * info.joint_dim * photo.row, 2 * info.joint_dim, photo.vector_crc
    if kind == "regions":
        if photo.regions_at is None:
            return 0, 0, None
        size = sum(math.prod(shape) * np.dtype(array.dtype).itemsize for array, shape in _kept(photo, info))
        return photo.regions_at, size, photo.regions_crc
    return photo.thumbnail_at, photo.thumbnail_size, photo.thumbnail_crc


def is_wrong(vectors: FloatArray, normalised: bool) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(n, D) vectors -> (n,) True where one is not finite or, where the model's are, not of length 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.asarray(vectors, dtype=np.float32)
        squares = np.einsum("nd,nd->n", wide, wide)
        if not normalised:
            return ~np.isfinite(squares)
        return ~(np.abs(np.sqrt(squares) - 1) < LENGTH_TOLERANCE)


class GrowingFile(io.FileIO):
    """One of the three files that grow.

    path  where it is
    end   bytes that are acknowledged, or were appended since
    """

    def __init__(self, folder: Path, kind: str, info: IndexInfo, state: State, *, write: bool = False) -> None:
        """Open the file of vectors, regions or thumbnails of a state.

        write  make it where it is missing, and bring it to its acknowledged end. A longer file is cut. A shorter one
               has lost what its records still name: it is filled up with zeros, and whoever checks it finds them.

        Raises `SearchError` where it is a link or no regular file, and `FileNotFoundError`.
        """
        self.path, self.kind, self.info = growing_path(folder, kind, state.generation), kind, info
        self.rewind(state)
        flags, mode = (os.O_RDWR | os.O_CREAT, "r+") if write else (os.O_RDONLY, "r")
        try:
            super().__init__(open_plain(self.path, flags), mode)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise not_ours(self.path, error) from error
        if write and self.status().st_size != self.end:  # a cut to the same size would change the file's time
            self.truncate(self.end)

    def piece(self, photo: PhotoRecord, *, normalised: bool = False) -> bytes:
        """What it has of a photo; nothing where the index keeps none.

        Raises `SearchError` where that is not there, or is not what was written. A thumbnail must begin as a JPEG. A
        vector without a checksum, of an older index, must be finite, and of length 1 where `normalised`.
        """
        start, size, crc = piece_of(self.kind, photo, self.info)
        content = read_at(self.fileno(), size, start) if start + size <= self.end else b""
        if len(content) != size:
            raise SearchError(f"{self.path} is shorter than the records say; {REMEDY}")
        fault = ""
        if crc not in (None, zlib.crc32(content)):
            fault = "is not what was written"
        elif self.kind == "thumbnails" and not content.startswith(JPEG_START):
            fault = "is no JPEG"
        elif self.kind == "vectors" and crc is None and is_wrong(np.frombuffer(content, "<f2")[None], normalised)[0]:
            fault = "is what no model gives"
        if fault:
            raise SearchError(f"{self.path} is damaged: what it has of '{photo.id}' {fault}; {REMEDY}")
        return content

    def rewind(self, state: State) -> None:
        """Forget what stands after the acknowledged end: the next piece is written over it."""
        ends = {"regions": state.regions_end, "thumbnails": state.thumbnails_end}
        self.end = ends.get(self.kind, 2 * self.info.joint_dim * state.num_rows)

    def append(self, content: bytes) -> int:
        """Write `content` after everything else; gives the place of its first byte."""
        start = self.seek(self.end)
        write_all(self.fileno(), content)
        self.end += len(content)
        return start

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self.fileno())

    def status(self) -> os.stat_result:
        """Size, time and inode of the file."""
        return os.fstat(self.fileno())


def not_ours(path: Path, error: OSError) -> SearchError:
    """The error for a file of an index that is a link, no regular file, or may not be opened."""
    return SearchError(
        f"{path} cannot be used ({error.strerror}); the files of an index are regular files that `vsrn index` made, so"
        " do not use an index whose files are links or devices, and check the permissions of your own."
    )


def open_model(folder: Path, info: IndexInfo, device: str = "auto", *, whole: bool = False) -> OnnxEncoder:
    """The model inside an index.

    device  where its extractor and captioner compute: `cpu`, `cuda`, `mps` or `auto`
    whole   whether to look at all of its files now, rather than at each when it is needed

    Raises `SearchError` where it is another, or index.json does not agree with it, and `CheckpointError` where one
    of its files is missing, broken, a link, or not the file that the index was made with.
    """
    place = folder / MODEL_FOLDER
    if place.is_symlink():
        raise SearchError(f"{place} is a link, which `vsrn index` never makes; do not use this index.")
    encoder = OnnxEncoder(place, checksums=info.files, device=device)
    if encoder.info.model != info.model:
        raise SearchError(
            f"{place} ({encoder.info.model[:12]}) is not the model that the index was made by ({info.model[:12]});"
            f" `vsrn index PHOTOS -o {folder} --model MODEL`, with that model, puts it back."
        )
    check_agreement(folder, info, encoder.info, "model", ("joint_dim", "feature_dim"))
    for name in info.files if whole else ():
        encoder.file(name)
    return encoder


def check_agreement(folder: Path, info: IndexInfo, other: object, what: str, names: Iterable[str]) -> None:
    """Raise `SearchError` where index.json says otherwise than the model or the records, `what`, of some fields."""
    for name in names:
        said, known = getattr(info, name), getattr(other, name)
        if said != known:
            raise SearchError(
                f"{folder / INFO_FILE} was changed: it says {name} {said}, and the {what} {known}; put it back, or"
                f" delete this one file, and `vsrn index PHOTOS -o {folder}` makes it again."
            )


@contextlib.contextmanager
def index_lock(folder: Path) -> Iterator[None]:
    """For the one process that writes to an index; clears what killed writers left.

    Raises `SearchError` where another process writes.
    """
    try:
        release = take_lock(folder / LOCK_FILE)
    except BlockingIOError as error:
        raise SearchError(f"{folder} is being written by another vsrn index; wait for it or stop it.") from error
    except OSError as error:
        raise not_ours(folder / LOCK_FILE, error) from error
    try:
        for leftover in folder.iterdir():
            if _TEMPORARY.fullmatch(leftover.name):
                delete(leftover)
        yield
    finally:
        release()
