"""Writes one split of a region store so that a kill at any moment loses nothing that was finished.

While a split grows, the names of its files end in `.partial`, and a journal says what is in them:

    train_journal.jsonl.partial    {"extractor": "grid", "fingerprint": "9f...", "photos": "07...", ...}
                                   {"ids": ["a.jpg", "b.jpg"], "skipped": []}
                                   {"ids": ["d.jpg"], "skipped": [{"id": "c.jpg", "reason": "..."}]}
                                   {"publish": ["_boxes.npy", "_ids.txt", ".json", "_ims.npy"]}

Rows reach the disk before the line that acknowledges them; what follows the last whole line is cut off on reopening.
Once the `publish` line is there the files only need renaming, and the next process that opens the split does what is
left of that; `_ims.npy`, by which a split is known, goes last.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.data.region_store import SkippedPhoto, StoreInfo, per_image
from vsrn.data.regions import RegionNames, Regions, padded
from vsrn.data.shards import FEATURES_FILE, SHARD_FILE, SplitHeader
from vsrn.errors import DataError
from vsrn.files import Closing, as_json, open_or_make, sync_folder, take_lock, write_all, write_synced

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# What may follow a split's name; nothing that leads to another folder.
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_]*\.[a-z]+$")]
_Line = TypeVar("_Line")
COUNTS = "_counts.npy"
_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


class GrowingArray:
    """An array on disk that grows along its first axis; its header says 0 rows until `seal` writes their number."""

    def __init__(self, path: Path, file: io.FileIO, dtype: str, row_shape: tuple[int, ...], rows: int) -> None:
        """Cut off a file, opened from `path`, behind its first rows. Raises `DataError` where it is shorter."""
        self.path, self.dtype, self.row_shape, self.rows = path, np.dtype(dtype), row_shape, rows
        self._file = file
        self._write_header(0)
        end = file.tell() + rows * int(np.prod(row_shape)) * self.dtype.itemsize
        if file.seek(0, os.SEEK_END) < end:
            raise DataError(f"{path} is shorter than its journal says; delete this split's .partial files to restart.")
        file.truncate(end)
        file.seek(end)

    def append(self, rows: npt.NDArray[np.number]) -> None:
        """Write (B, ...) rows after the others; they are sure to be on disk once `sync` returns."""
        if rows.shape[1:] != self.row_shape:
            raise DataError(f"{self.path} holds rows of shape {self.row_shape}, not {rows.shape[1:]}.")
        # The array's own memory: copying 256 photos' 24 MB into bytes would hold Python's lock for all of it.
        write_all(self._file.fileno(), np.ascontiguousarray(rows, dtype=self.dtype).reshape(-1).view(np.uint8).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """Wait until everything that was appended is on disk."""
        os.fsync(self._file.fileno())

    def seal(self) -> None:
        """Write the number of rows into the header, where numpy looks for it."""
        self._write_header(self.rows)
        os.fsync(self._file.fileno())

    def _write_header(self, rows: int) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (rows, *self.row_shape)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: list[str]
    skipped: list[SkippedPhoto]


class _Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    publish: list[_FileName]


def digest_of(ids: Sequence[str]) -> str:
    """SHA-256 (hex) of a list of photo ids, order included."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


class RegionWriter(Closing):
    """Appends batches of regions to one split, and goes on where an earlier writer was stopped.

    ids      photos that have a row, in row order
    skipped  photos that have none, in the order they came
    """

    def __init__(self, folder: Path | str, split: str, header: SplitHeader) -> None:
        """Open a split, anew or where it stopped. Raises `DataError` where it is finished, busy or begun otherwise."""
        check_split_name(split)
        self.folder, self.split, self.header = Path(folder), split, header
        self._partial = partial(_partial, self.folder, split)
        self.ids: list[str] = []
        self.skipped: list[SkippedPhoto] = []
        with _named_full_disk(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise DataError(f"{folder} cannot be a folder, a file is in its way; choose another -o.") from error
            finish_interrupted(self.folder, split)
            if (self.folder / f"{split}{FEATURES_FILE}").exists():
                raise DataError(f"{self.folder} already holds a split '{split}'; choose another -o.")
            with ExitStack() as opened:
                opened.enter_context(_locked(self.folder, split))
                self._files = opened.enter_context(ExitStack())
                self._journal = self._files.enter_context(open_or_make(self._partial("_journal.jsonl")))
                self._replay()
                kinds: dict[str, tuple[str, tuple[int, ...]]] = {COUNTS: ("<i4", ())}
                for array in header.arrays():
                    kinds[array.suffix] = array.dtype, (header.num_regions, *array.row_shape(header.feature_dim))
                self._arrays = {}
                for name, kind in kinds.items():
                    file = self._files.enter_context(open_or_make(self._partial(name)))
                    self._arrays[name] = GrowingArray(self._partial(name), file, *kind, len(self.ids))
                self._opened = opened.pop_all()

    @property
    def num_seen(self) -> int:
        """Photos that are finished: extracted or skipped."""
        return len(self.ids) + len(self.skipped)

    def append(self, ids: Sequence[str], regions: Sequence[Regions], skipped: Sequence[SkippedPhoto] = ()) -> None:
        """Write a batch: when this returns, a kill or a power cut no longer loses it.

        Photos may have fewer regions than `header.num_regions`. Raises `DataError` where the disk is full; what was
        appended before is kept.
        """
        with _named_full_disk(self.folder):
            if ids:
                for name, rows in self._rows(regions).items():
                    self._arrays[name].append(rows)
                # All are written before the first is waited for, whose wait then covers most of the others'.
                for array in self._arrays.values():
                    array.sync()
            self._acknowledge(_Batch(list(ids), list(skipped)))
        self.ids += ids
        self.skipped += skipped

    def finish(self, captions: Sequence[Sequence[str]] | None = None, names: RegionNames | None = None) -> None:
        """Give every file its final name.

        captions  those of each row, in row order
        names     of the classes and attributes, where the header has any
        """
        counts = None if captions is None else per_image([len(of_photo) for of_photo in captions])
        info = StoreInfo(self.header.extractor, self.header.fingerprint, counts)
        texts = {".json": as_json(info)}
        if self.header.has_ids:
            texts["_ids.txt"] = _lines(self.ids)
        if captions is not None:
            texts["_caps.txt"] = _lines([caption for of_photo in captions for caption in of_photo])
        if names is not None and (names.classes or names.attributes):
            texts["_names.json"] = as_json(names)
        if self.skipped:
            texts["_skipped.json"] = as_json(self.skipped)
        if self.header.shard is not None:
            texts[SHARD_FILE] = as_json(self.header)
        with _named_full_disk(self.folder):
            for array in self._arrays.values():
                array.seal()
            for name, content in texts.items():
                write_synced(self._partial(name), content)
            # Where every row is full, counts say nothing; they are dropped when the split is published.
            full = (np.lib.format.open_memmap(self._partial(COUNTS), mode="r") == self.header.num_regions).all()
            published = {*self._arrays, *texts} - ({COUNTS} if full else set())
            # The features go last: a split whose features have their name is complete.
            in_order = sorted(published, key=lambda name: (name == FEATURES_FILE, name))
            self._acknowledge(_Publish(in_order))
            self._files.close()  # Windows renames no open file
            _publish(self.folder, self.split, in_order)
        self.close()

    def discard(self) -> None:
        """Take back everything: as if the split had never been begun."""
        self._files.close()
        for name in (*self._arrays, "_journal.jsonl"):
            self._partial(name).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the files; an unfinished split can be continued later."""
        self._opened.close()

    def _acknowledge(self, line: SplitHeader | _Batch | _Publish) -> None:
        write_all(self._journal.fileno(), msgspec.json.encode(line) + b"\n")
        os.fsync(self._journal.fileno())

    def _replay(self) -> None:
        """Read what the journal acknowledges, and cut off a line that was torn."""
        lines, whole = _read_journal(self._journal)
        self._journal.truncate(whole)
        self._journal.seek(whole)
        if not lines:
            self._acknowledge(self.header)
            return
        begun = _decode(self.folder, self.split, lines[0], SplitHeader)
        if begun != self.header:
            how = begun.difference(self.header)
            raise DataError(
                f"{self.folder} holds an unfinished split '{self.split}' that was begun {how};"
                f" finish it as it was begun, choose another -o, or delete {self.folder / self.split}_*.partial."
            )
        for line in lines[1:]:
            batch = _decode(self.folder, self.split, line, _Batch)
            self.ids += batch.ids
            self.skipped += batch.skipped

    def _rows(self, regions: Sequence[Regions]) -> dict[str, npt.NDArray[Any]]:
        """What each array gets of a batch."""
        counts = np.array([len(photo.features) for photo in regions])
        assert counts.min() >= 1
        N = self.header.num_regions
        arrays = {
            array.suffix: padded([np.asarray(getattr(photo, array.name)) for photo in regions], N, array.filler)
            for array in self.header.arrays()
        }
        return {**arrays, COUNTS: counts}


def check_split_name(split: str) -> None:
    """Raise `DataError` where a split's name could not begin a file name."""
    if not _SPLIT_NAME.fullmatch(split):
        raise DataError(f"{split!r} cannot name a split; use letters, digits, '_', '-' and '.'.")


def finish_interrupted(folder: Path, split: str) -> None:
    """Complete the renaming of a split that was stopped in the midst of it; else do nothing."""
    path = _partial(folder, split, "_journal.jsonl")
    if not path.exists():
        return
    with _locked(folder, split):
        with open_or_make(path) as journal:
            lines, _ = _read_journal(journal)
        if lines and lines[-1].startswith(b'{"publish"'):
            _publish(folder, split, _decode(folder, split, lines[-1], _Publish).publish)


def _partial(folder: Path, split: str, name: str) -> Path:
    return folder / f"{split}{name}.partial"


def _decode(folder: Path, split: str, line: bytes, kind: type[_Line]) -> _Line:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{_partial(folder, split, '_journal.jsonl')} cannot be read ({error});"
            f" delete {folder / split}_*.partial to begin this split again."
        ) from error


def _publish(folder: Path, split: str, names: Sequence[str]) -> None:
    for name in names:
        partial = _partial(folder, split, name)
        if partial.exists():
            partial.replace(folder / f"{split}{name}")
    _partial(folder, split, COUNTS).unlink(missing_ok=True)
    sync_folder(folder)
    _partial(folder, split, "_journal.jsonl").unlink(missing_ok=True)
    sync_folder(folder)


@contextmanager
def _locked(folder: Path, split: str) -> Iterator[None]:
    """Hold the lock of a split, and delete it. Raises `DataError` where another process holds it, or it is a link."""
    path = folder / f"{split}_journal.jsonl.lock"
    open_or_make(path).close()
    try:
        release = take_lock(path)
    except BlockingIOError as error:
        journal = _partial(folder, split, "_journal.jsonl")
        raise DataError(f"{journal} is being written by another vsrn extract; wait for it or stop it.") from error
    try:
        yield
    finally:
        if os.name != "nt":  # where a file cannot be deleted while it is open
            path.unlink(missing_ok=True)
        release()


def _read_journal(journal: io.FileIO) -> tuple[list[bytes], int]:
    """Whole lines, and the number of bytes they take; a line without its end was torn by a kill."""
    journal.seek(0)
    content = journal.read()
    whole = content.rfind(b"\n") + 1
    return content[:whole].splitlines(), whole


def _lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


@contextmanager
def _named_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise DataError(
            f"no space left on the disk of {folder} ({error.strerror});"
            " free some and run the same command again: what is finished is kept."
        ) from error
