"""What an index knows of each photo, in SQLite: the one place that says which photos there are.

Everything else in the folder hangs on it. A vector, a thumbnail or regions that no record points to never were:
they reach the disk first, and the commit that names them is what acknowledges them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vsrn.errors import SearchError
from vsrn.regions.store import IntArray

SECONDS_TO_WAIT = 30.0
# SQLite takes at most so many values in one statement, whatever it was built with.
VALUES_AT_ONCE = 500

_TABLES = """
CREATE TABLE photos (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path BLOB NOT NULL, size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    taken TEXT NOT NULL, num_regions INTEGER NOT NULL, regions_at INTEGER, has_scores INTEGER NOT NULL,
    thumbnail_at INTEGER NOT NULL, thumbnail_size INTEGER NOT NULL
);
CREATE INDEX photos_by_date ON photos (taken);
CREATE TABLE dead (row INTEGER PRIMARY KEY);
CREATE TABLE skipped (id TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE state (
    version INTEGER NOT NULL, generation INTEGER NOT NULL, num_rows INTEGER NOT NULL,
    regions_end INTEGER NOT NULL, thumbnails_end INTEGER NOT NULL, root BLOB NOT NULL
);
"""


@dataclass(frozen=True)
class PhotoRecord:
    """A photo of the index.

    row             its place among the vectors
    id              its path below the root as one line of text
    path            the same as the file system's own bytes
    size            of the file, in bytes
    modified_ns     when the file last changed, in nanoseconds since 1970
    sha256          of the file, hex
    width, height   in pixels, upright
    taken           when, as `2024-05-17 14:03:00`: by the camera's clock, or else when the file last changed
    num_regions     N
    regions_at      first byte of its regions, None where they are not kept
    has_scores      whether its regions have a detection confidence
    thumbnail_at    first byte of its thumbnail
    thumbnail_size  bytes of its thumbnail
    """

    row: int
    id: str
    path: bytes
    size: int
    modified_ns: int
    sha256: str
    width: int
    height: int
    taken: str
    num_regions: int
    regions_at: int | None
    has_scores: bool
    thumbnail_at: int
    thumbnail_size: int


class Known(NamedTuple):
    """What tells whether a photo's file has changed; as in `PhotoRecord`."""

    size: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class SkippedRecord:
    """A file that is no photo we can read, and the sentence that says why."""

    id: str
    reason: str


@dataclass(frozen=True)
class State:
    """How far the index has come.

    version         rises with every commit
    generation      which of the numbered files hold the vectors; rises with every compaction
    num_rows        rows of vectors acknowledged, dead ones included
    regions_end     bytes of regions acknowledged
    thumbnails_end  bytes of thumbnails acknowledged
    root            the folder of the photos, in the file system's own bytes
    """

    version: int
    generation: int
    num_rows: int
    regions_end: int
    thumbnails_end: int
    root: bytes


@dataclass(frozen=True)
class Where:
    """Which photos a search looks at.

    folder        below the root, with forward slashes; its subfolders count too
    since, until  the days, both included, that photos were taken between
    """

    folder: str | None = None
    since: date | None = None
    until: date | None = None

    def __bool__(self) -> bool:
        return self != Where()


_NAMES = [entry.name for entry in fields(PhotoRecord)]
_COLUMNS = ", ".join(_NAMES)
_STATE = ", ".join(entry.name for entry in fields(State))


class View:
    """The records as they stood when the transaction began, whatever is committed meanwhile."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def state(self) -> State:
        """How far the index has come."""
        return State(*self._connection.execute(f"SELECT {_STATE} FROM state").fetchone())  # noqa: S608 - our names

    def num_photos(self) -> int:
        """Photos that can be found."""
        return int(self._connection.execute("SELECT count(*) FROM photos").fetchone()[0])

    def photo(self, photo_id: str) -> PhotoRecord | None:
        """The record of one photo."""
        found = self._connection.execute(f"SELECT {_COLUMNS} FROM photos WHERE id = ?", (photo_id,))  # noqa: S608
        return next(map(_record, found), None)

    def photos_at(self, rows: Sequence[int]) -> dict[int, PhotoRecord]:
        """Records by row; a row without a photo is left out."""
        found: dict[int, PhotoRecord] = {}
        for first in range(0, len(rows), VALUES_AT_ONCE):
            some = rows[first : first + VALUES_AT_ONCE]
            marks = ", ".join("?" * len(some))
            records = self._connection.execute(f"SELECT {_COLUMNS} FROM photos WHERE row IN ({marks})", some)  # noqa: S608
            found |= {record.row: record for record in map(_record, records)}
        return found

    def photos(self) -> Iterator[PhotoRecord]:
        """Every record, by row."""
        return map(_record, self._connection.execute(f"SELECT {_COLUMNS} FROM photos ORDER BY row"))  # noqa: S608

    def latest(self, k: int) -> list[PhotoRecord]:
        """The k records taken last, the latest first; of equals the one added later."""
        order = "ORDER BY taken DESC, row DESC LIMIT ?"
        return list(map(_record, self._connection.execute(f"SELECT {_COLUMNS} FROM photos {order}", (k,))))  # noqa: S608

    def known(self) -> dict[str, Known]:
        """What tells whether files have changed, by photo id."""
        found = self._connection.execute("SELECT id, size, modified_ns, sha256 FROM photos")
        return {photo_id: Known(*values) for photo_id, *values in found}

    def rows(self, where: Where) -> IntArray:
        """Rows of the photos that a filter lets through, rising."""
        terms, values = _condition(where)
        found = self._connection.execute(f"SELECT row FROM photos WHERE {terms} ORDER BY row", values)  # noqa: S608
        return np.fromiter((row for (row,) in found), dtype=np.int64)

    def dead_rows(self) -> IntArray:
        """Rows whose photo is gone, rising."""
        found = self._connection.execute("SELECT row FROM dead ORDER BY row")
        return np.fromiter((row for (row,) in found), dtype=np.int64)

    def skipped(self) -> list[SkippedRecord]:
        """Files that could not be read, by id."""
        found = self._connection.execute("SELECT id, reason FROM skipped ORDER BY id")
        return [SkippedRecord(*row) for row in found]


class Change(View):
    """Changes that are committed together or not at all."""

    def add(self, photos: Sequence[PhotoRecord]) -> None:
        """New photos, on rows of their own."""
        marks = ", ".join("?" * len(fields(PhotoRecord)))
        self._connection.executemany(
            f"INSERT INTO photos ({_COLUMNS}) VALUES ({marks})",  # noqa: S608 - our names
            [astuple(photo) for photo in photos],
        )

    def remove(self, ids: Iterable[str]) -> None:
        """Photos that are gone; their rows are dead from now on."""
        for photo_id in ids:
            self._connection.execute("INSERT INTO dead SELECT row FROM photos WHERE id = ?", (photo_id,))
            self._connection.execute("DELETE FROM photos WHERE id = ?", (photo_id,))

    def touch(self, photo_id: str, size: int, modified_ns: int) -> None:
        """A file with a new time and its old content."""
        values = (size, modified_ns, photo_id)
        self._connection.execute("UPDATE photos SET size = ?, modified_ns = ? WHERE id = ?", values)

    def skip(self, skipped: Sequence[SkippedRecord]) -> None:
        """Files that cannot be read."""
        self._connection.executemany("INSERT INTO skipped VALUES (?, ?)", [astuple(file) for file in skipped])

    def unskip(self, ids: Iterable[str]) -> None:
        """Files that are gone, or can be read after all."""
        self._connection.executemany("DELETE FROM skipped WHERE id = ?", [(file_id,) for file_id in ids])

    def move(self, moved: Iterable[tuple[int, int | None, int, int]]) -> None:
        """Compaction: (new row, regions_at, thumbnail_at, old row) of every photo, rising; no row is dead any more."""
        # New rows never lie above old ones, so that in rising order each new one is free.
        self._connection.executemany("UPDATE photos SET row = ?, regions_at = ?, thumbnail_at = ? WHERE row = ?", moved)
        self._connection.execute("DELETE FROM dead")

    def reach(self, state: State) -> None:
        """Where the index stands after this."""
        settings = ", ".join(f"{entry.name} = ?" for entry in fields(State))
        self._connection.execute(f"UPDATE state SET {settings}", astuple(state))  # noqa: S608 - our names


class Records:
    """The database. Threads may share it: whoever reads or writes has a connection to itself for that long."""

    def __init__(self, path: Path) -> None:
        """Open the records. Raises `SearchError` where they are missing."""
        if not path.is_file():
            raise SearchError(f"{path} is missing; delete the index and make it again with `vsrn index`.")
        self.path = path
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False

    @classmethod
    def create(cls, path: Path, root: bytes) -> Records:
        """Begin anew, for photos below `root`; what was there is replaced."""
        for leftover in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            leftover.unlink(missing_ok=True)
        with _told(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute("INSERT INTO state VALUES (0, 1, 0, 0, 0, ?)", (root,))
            connection.execute("COMMIT")
        return cls(path)

    @contextlib.contextmanager
    def read(self) -> Iterator[View]:
        """One view for as long as the block lasts. Raises `SearchError` where the database is damaged."""
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield View(connection)
            finally:
                connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self) -> Iterator[Change]:
        """Changes that reach the disk when the block ends well, and never happened otherwise."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Change(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of the database; connections in use are closed when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        self._refuse_closed()
        with _told(self.path):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = sqlite3.connect(
                    self._address(), timeout=SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False, uri=True
                )
                connection.execute("PRAGMA synchronous = FULL")
            try:
                yield connection
            finally:
                self._idle.append(connection)
                if self._closed:
                    self.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise SearchError(f"{self.path.parent} was closed; open the index again.")

    def _address(self) -> str:
        address = self.path.absolute().as_uri()
        if os.access(self.path.parent, os.W_OK):
            return f"{address}?mode=rw"
        # WAL needs a file of its own beside the database; where none can be made, nobody writes either.
        waiting = Path(f"{self.path}-wal")
        return f"{address}?mode=ro" + ("" if waiting.exists() and waiting.stat().st_size else "&immutable=1")


def _record(row: tuple[object, ...]) -> PhotoRecord:
    values = dict(zip(_NAMES, row, strict=True))
    return PhotoRecord(**values | {"has_scores": bool(values["has_scores"])})  # type: ignore[arg-type]


def _condition(where: Where) -> tuple[str, list[str]]:
    """A filter as SQL, with the values of its marks."""
    terms, values = ["1"], []
    folder = "" if where.folder is None else where.folder.strip("/")
    if folder not in ("", "."):
        # What begins with "folder/" stands between that and the character after the slash.
        terms.append("id >= ? AND id < ?")
        values += [f"{folder}/", f"{folder}0"]
    if where.since is not None:
        terms.append("taken >= ?")
        values.append(where.since.isoformat()[:10])
    if where.until is not None:
        # Any time of that day stands between the day and the day with a last character behind it.
        terms.append("taken < ?")
        values.append(where.until.isoformat()[:10] + "~")
    return " AND ".join(terms), values


def local_time(modified_ns: int) -> datetime:
    """A file's time by this machine's clock, for photos whose camera says nothing."""
    return datetime.fromtimestamp(modified_ns / 1e9)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors, in our words."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise SearchError(f"{path} cannot be used ({error}); if it is damaged, make the index again.") from error
