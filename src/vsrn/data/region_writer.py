"""Writes one split of a region store so that a kill at any moment loses nothing that was finished.

While a split grows, its files carry `.partial` behind their names, and a journal says what is in them:

    train_journal.jsonl.partial    {"extractor": "grid", "fingerprint": "9f...", "photos": "07...", ...}
                                   {"ids": ["a.jpg", "b.jpg"], "skipped": []}
                                   {"ids": ["d.jpg"], "skipped": [{"id": "c.jpg", "reason": "..."}]}
                                   {"publish": ["_boxes.npy", "_ids.txt", ".json", "_ims.npy"]}

Rows reach the disk before the line that acknowledges them. What stands behind the last whole line never
happened: on reopening it is cut off. Once the `publish` line is there the files only need renaming, and
whoever opens the split next does what is left of that; `_ims.npy`, by which a split is known, goes last.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.data.growing import GrowingArray, open_unlinked, sync_folder, write_all, write_synced
from vsrn.data.region_store import RegionNames, Regions, StoreInfo
from vsrn.data.shards import SHARD_FILE, Shard
from vsrn.errors import DataError

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_Line = TypeVar("_Line")
COUNTS = "_counts.npy"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SkippedPhoto(msgspec.Struct, frozen=True, omit_defaults=True):
    """A photo that has no row, and the sentence that says why.

    kind  a `vsrn.errors.SkipKind`; "" where a version wrote it that did not keep the kind
    """

    id: str
    reason: str
    kind: str = ""


class SplitHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a split is made of and by: the journal's first line, and what a shard keeps in `{split}_shard.json`.

    extractor    its name
    fingerprint  SHA-256 (hex) of its weights and settings
    photos       `digest_of` the ids of all photos asked for, in order
    num_regions  N, or the most that a photo has; where one has fewer, `{split}_counts.npy` is written
    feature_dim  F
    has_scores   whether `{split}_scores.npy` is written
    has_classes, has_attributes  the same of `{split}_classes.npy` and `{split}_attributes.npy`
    shard        which block of `photos` it holds; None for all of them
    merged       whether the rows come from finished shards, whose skipped photos come one shard at a time
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


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: list[str]
    skipped: list[SkippedPhoto]


# What may follow a split's name; nothing that leads to another folder.
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_]*\.[a-z]+$")]


class _Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    publish: list[_FileName]


def digest_of(ids: Sequence[str]) -> str:
    """SHA-256 (hex) of a list of photo ids, order included."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def read_header(path: Path) -> SplitHeader:
    """Read a shard's `{split}_shard.json`. Raises `DataError` where it is missing or malformed."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SplitHeader)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); extract this shard again.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); extract this shard again.") from error


class RegionWriter:
    """Appends batches of regions to one split, and goes on where an earlier writer was stopped.

    ids      photos that have a row, in row order
    skipped  photos that have none, in the order they came
    """

    def __init__(self, folder: Path | str, split: str, header: SplitHeader) -> None:
        """Open the split for writing, anew or where it stopped.

        Raises `DataError` where the split is finished, is being written by another process, or was begun
        from other photos or with another extractor.
        """
        refuse_split_name(split)
        self.folder, self.split, self.header = Path(folder), split, header
        self.ids: list[str] = []
        self.skipped: list[SkippedPhoto] = []
        with _told_of_full_disk(self.folder):
            _make_folder(self.folder)
            finish_interrupted(self.folder, split)
            if (self.folder / f"{split}_ims.npy").exists():
                raise DataError(f"{self.folder} already holds a split '{split}'; choose another -o.")
            self._journal = _open_journal(self._partial("_journal.jsonl"))
            try:
                self._replay()
                self._arrays = self._open_arrays()
            except BaseException:
                self._journal.close()
                raise

    @property
    def num_seen(self) -> int:
        """Photos that are settled, done or skipped."""
        return len(self.ids) + len(self.skipped)

    def append(self, ids: Sequence[str], regions: Sequence[Regions], skipped: Sequence[SkippedPhoto] = ()) -> None:
        """Settle a batch: it is on disk, whatever happens, when this returns.

        A photo may have fewer regions than `header.num_regions`; the rest of its row is zeros.

        Raises `DataError` where the disk is full; what was appended before is kept.
        """
        with _told_of_full_disk(self.folder):
            if ids:
                for name, rows in self._rows(regions).items():
                    self._arrays[name].append(rows)
            self._acknowledge(_Batch(list(ids), list(skipped)))
        self.ids += ids
        self.skipped += skipped

    def finish(self, captions: Sequence[Sequence[str]] | None = None, names: RegionNames | None = None) -> None:
        """Give every file its final name.

        captions  those of each row, in row order
        names     of the classes and attributes, where the header has any
        """
        counts = None if captions is None else [len(of_photo) for of_photo in captions]
        per_image = counts[0] if counts and len(set(counts)) == 1 else counts
        info = StoreInfo(self.header.extractor, self.header.fingerprint, per_image)
        texts = {
            "_ids.txt": _lines(self.ids),
            ".json": msgspec.json.format(msgspec.json.encode(info)) + b"\n",
        }
        if captions is not None:
            texts["_caps.txt"] = _lines([caption for of_photo in captions for caption in of_photo])
        if names is not None and (names.classes or names.attributes):
            texts["_names.json"] = msgspec.json.format(msgspec.json.encode(names)) + b"\n"
        if self.skipped:
            texts["_skipped.json"] = msgspec.json.format(msgspec.json.encode(self.skipped)) + b"\n"
        if self.header.shard is not None:
            texts[SHARD_FILE] = msgspec.json.format(msgspec.json.encode(self.header)) + b"\n"
        with _told_of_full_disk(self.folder):
            for array in self._arrays.values():
                array.seal()
            for name, content in texts.items():
                write_synced(self._partial(name), content)
            # Where every row is full, counts say nothing; they are dropped when the split is published.
            published = {*self._arrays, *texts} - ({COUNTS} if self._all_full() else set())
            # The features go last: a split whose features have their name is complete.
            in_order = sorted(published, key=lambda name: (name == "_ims.npy", name))
            self._acknowledge(_Publish(in_order))
            _publish(self.folder, self.split, in_order)
        self.close()

    def discard(self) -> None:
        """Take back everything: as if the split had never been begun."""
        for path in [self._partial(name) for name in self._arrays] + [self._partial("_journal.jsonl")]:
            path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the files; an unfinished split can be gone on with later."""
        for array in self._arrays.values():
            array.close()
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _partial(self, name: str) -> Path:
        return _partial(self.folder, self.split, name)

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
        self._refuse_other_header(lines[0])
        for line in lines[1:]:
            batch = self._decode(line, _Batch)
            self.ids += batch.ids
            self.skipped += batch.skipped

    def _decode(self, line: bytes, kind: type[_Line]) -> _Line:
        return _decode(self.folder, self.split, line, kind)

    def _refuse_other_header(self, line: bytes) -> None:
        begun = self._decode(line, SplitHeader)
        if begun == self.header:
            return
        other = "from another list of photos"
        if (begun.extractor, begun.fingerprint) != (self.header.extractor, self.header.fingerprint):
            other = f"with another extractor or other weights ({begun.extractor} {begun.fingerprint[:12]})"
        elif begun.merged != self.header.merged:
            other = "by merging shards" if begun.merged else "from photos, not by merging shards"
        elif (begun.shard and begun.shard.batch_size) != (self.header.shard and self.header.shard.batch_size):
            other = "with another --batch-size"
        raise DataError(
            f"{self.folder} holds an unfinished split '{self.split}' that was begun {other};"
            f" finish it as it was begun, choose another -o, or delete {self.folder / self.split}_*.partial."
        )

    def _rows(self, regions: Sequence[Regions]) -> dict[str, npt.NDArray[np.number]]:
        """What each array gets of a batch."""
        N = self.header.num_regions
        rows: dict[str, npt.NDArray[np.number]] = {
            "_ims.npy": _padded([photo.features for photo in regions], N),
            "_boxes.npy": _padded([photo.boxes for photo in regions], N),
            COUNTS: np.array([len(photo.features) for photo in regions]),
        }
        assert rows[COUNTS].min() >= 1
        if self.header.has_scores:
            rows["_scores.npy"] = _padded([np.asarray(photo.scores) for photo in regions], N)
        if self.header.has_classes:
            rows["_classes.npy"] = _padded([np.asarray(photo.classes) for photo in regions], N, filler=-1)
        if self.header.has_attributes:
            rows["_attributes.npy"] = _padded([np.asarray(photo.attributes) for photo in regions], N, filler=-1)
        return rows

    def _all_full(self) -> bool:
        counts = np.lib.format.open_memmap(self._partial(COUNTS), mode="r")
        return bool((counts == self.header.num_regions).all())

    def _open_arrays(self) -> dict[str, GrowingArray]:
        N, F = self.header.num_regions, self.header.feature_dim
        kinds: dict[str, tuple[str, tuple[int, ...]]] = {
            "_ims.npy": ("<f2", (N, F)),
            "_boxes.npy": ("<f4", (N, 4)),
            COUNTS: ("<i4", ()),
        }
        if self.header.has_scores:
            kinds["_scores.npy"] = ("<f4", (N,))
        if self.header.has_classes:
            kinds["_classes.npy"] = ("<i2", (N,))
        if self.header.has_attributes:
            kinds["_attributes.npy"] = ("<i2", (N,))
        rows = len(self.ids)
        return {name: GrowingArray(self._partial(name), *kind, rows) for name, kind in kinds.items()}


def refuse_split_name(split: str) -> None:
    """Raise `DataError` where a split's name could not begin a file name."""
    if not _SPLIT_NAME.fullmatch(split):
        raise DataError(f"{split!r} cannot name a split; use letters, digits, '_', '-' and '.'.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{folder} cannot be a folder, there is a file in its way; choose another -o.") from error


def finish_interrupted(folder: Path, split: str) -> None:
    """Complete the renaming of a split that was stopped in the midst of it; else do nothing."""
    path = _partial(folder, split, "_journal.jsonl")
    if not path.exists():
        return
    with _open_journal(path) as journal:
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


def _open_journal(path: Path) -> io.FileIO:
    journal = open_unlinked(path)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        journal.close()
        raise DataError(f"{path} is being written by another vsrn extract; wait for it or stop it.") from error
    return journal


def _read_journal(journal: io.FileIO) -> tuple[list[bytes], int]:
    """Whole lines, and the number of bytes they take; a line without its end was torn by a kill."""
    journal.seek(0)
    content = journal.read()
    whole = content.rfind(b"\n") + 1
    return content[:whole].splitlines(), whole


def _padded(rows: Sequence[npt.NDArray[np.number]], length: int, filler: int = 0) -> npt.NDArray[np.number]:
    """Arrays of at most `length` regions -> one array, `filler` where regions are lacking."""
    if all(len(row) == length for row in rows):
        return np.stack(rows)
    padded = np.full((len(rows), length, *rows[0].shape[1:]), filler, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def _lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


@contextmanager
def _told_of_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise DataError(
            f"no space left on the disk of {folder} ({error.strerror});"
            " free some and run the same command again: what is finished is kept."
        ) from error
