"""What an index knows of each photo, in SQLite: the one place that says which photos there are."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple, Self

import msgspec
import numpy as np

from vsrn.errors import SearchError, SkipKind
from vsrn.files import normal_name
from vsrn.metrics import IntArray
from vsrn.search.roots import Roots, Settings
from vsrn.search.where import EVERYWHERE, Where, between, condition

# SQLite takes at most so many values in one statement, whatever it was built with.
VALUES_AT_ONCE = 500
# SQLite's integers have 64 bits with a sign; file systems know larger inodes and times.
_LARGEST = 2**63 - 1
# A thumbnail of 256 pixels a side takes 12 KB; a damaged record may claim anything.
_MOST_THUMBNAIL_BYTES = 4_000_000

Count = Annotated[int, msgspec.Meta(ge=0)]


class Stamp(NamedTuple):
    """What tells without reading it whether a file has changed.

    size         in bytes
    modified_ns  when its content last changed, in nanoseconds since 1970
    changed_ns   when its content, name or rights last changed; None in older indexes, as the inode is
    """

    size: int
    modified_ns: int
    changed_ns: int | None
    inode: int | None

    @classmethod
    def of(cls, size: int, modified_ns: int, changed_ns: int, inode: int) -> Self:
        """A file's stamp in numbers that SQLite takes; numbers that are too large are cut alike every time."""
        modified_ns, changed_ns = (min(max(time, -_LARGEST), _LARGEST) for time in (modified_ns, changed_ns))
        return cls(size, modified_ns, changed_ns, inode & _LARGEST)

    @classmethod
    def of_status(cls, status: os.stat_result) -> Self:
        """The stamp of a file of this status."""
        return cls.of(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def is_of(self, file: Stamp) -> bool:
        """Whether a recorded stamp is that of a file as it is now."""
        if (self.size, self.modified_ns) != (file.size, file.modified_ns):
            return False
        return self.inode is None or (self.changed_ns, self.inode) == (file.changed_ns, file.inode)


@dataclass(frozen=True)
class PhotoRecord:
    """A photo of the index.

    id              its path below its folder as one line of text, after the folder's label where it has one
    path            its path below its folder as the file system's own bytes
    size, modified_ns, changed_ns, inode  as in `Stamp`
    sha256          of the file, hex; of a video of more than 64 MB, of its first and last 32 MB (`read_file`)
    width, height   in pixels, upright
    taken           when, as `2024-05-17 14:03:00`: by the camera's clock, or else when the file last changed
    row             its place among the vectors
    num_regions     N
    regions_at      first byte of its regions, None where they are not kept
    has_scores      whether its regions have a detection confidence
    thumbnail_at, thumbnail_size  first byte and number of bytes of its thumbnail
    vector_crc, regions_crc, thumbnail_crc  CRC-32 of the bytes of each; None in records of older indexes

    Of a photo that has not been added yet, only its file is known: what comes after `taken` has no meaning.
    """

    id: str
    path: bytes
    size: Count
    modified_ns: int
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    width: Count
    height: Count
    taken: Annotated[str, msgspec.Meta(max_length=40)]
    row: Count = 0
    num_regions: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    regions_at: Count | None = None
    has_scores: bool = False
    thumbnail_at: Count = 0
    thumbnail_size: Annotated[int, msgspec.Meta(ge=0, le=_MOST_THUMBNAIL_BYTES)] = 0
    inode: int | None = None
    changed_ns: int | None = None
    vector_crc: Count | None = None
    regions_crc: Count | None = None
    thumbnail_crc: Count | None = None


class Known(NamedTuple):
    """What tells whether a photo's file has changed."""

    stamp: Stamp
    sha256: str


class MovedPhoto(NamedTuple):
    """A photo of the index whose file has its old content and a new stamp: `old_id` has become `id`, or is the same."""

    old_id: str
    id: str
    path: bytes
    stamp: Stamp


@dataclass(frozen=True)
class SkippedRecord:
    """A file that has no photo in the index.

    reason  the sentence that says why
    kind    which kind of reason; empty in records of older indexes
    stamp   the file's, where its content is what was refused; None otherwise
    reader  what refused it: another version of vsrn may read it
    """

    id: str
    reason: str
    kind: SkipKind | str = ""
    stamp: Stamp | None = None
    reader: str = ""


class State(msgspec.Struct, frozen=True):
    """How far the index has come.

    version     rises with every commit
    generation  which of the numbered files hold the vectors; rises with every compaction
    num_rows    rows of vectors acknowledged, dead ones included
    regions_end, thumbnails_end  bytes of each acknowledged
    root        the folder whose ids begin with no label (`Roots.first`)
    """

    version: Count
    generation: Count
    num_rows: Count
    regions_end: Count
    thumbnails_end: Count
    root: bytes


REMEDY = "`vsrn index PHOTOS -o INDEX` mends it, reading again only the photos concerned."


class DamagedRecordsError(SearchError):
    """The records are missing, or not such as an index can have written."""


_NAMES = [entry.name for entry in fields(PhotoRecord)]
_COLUMNS = ", ".join(_NAMES)
_STATE = ", ".join(State.__struct_fields__)
_SKIPPED = "id, reason, kind, reader, size, modified_ns, changed_ns, inode"


class View:
    """The records as they stood when the transaction began, whatever is committed meanwhile."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def state(self) -> State:
        """How far the index has come. Raises `DamagedRecordsError` where the records do not say."""
        row = self._connection.execute(f"SELECT {_STATE} FROM state").fetchone()  # noqa: S608 - our names
        try:
            return msgspec.convert(dict(zip(State.__struct_fields__, row or (), strict=True)), State)
        except (msgspec.ValidationError, ValueError) as error:
            raise DamagedRecordsError("the records do not say how far the index has come") from error

    def settings(self) -> Settings:
        """What is kept for the next run. Raises `DamagedRecordsError` where that cannot be read."""
        row = self._connection.execute("SELECT json FROM settings").fetchone()
        try:
            return Settings() if row is None else msgspec.json.decode(row[0], type=Settings)
        except (msgspec.DecodeError, TypeError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedRecordsError(f"the settings in the records are damaged ({error})") from error

    def roots(self) -> Roots:
        """The folders of the photos."""
        return Roots.kept(self.state().root, self.settings())

    def num_photos(self, where: Where = EVERYWHERE) -> int:
        """How many photos pass a filter."""
        terms, values = self._condition(where)
        found = self._connection.execute(f"SELECT count(*) FROM photos WHERE {terms}", values)  # noqa: S608 - our names
        return int(found.fetchone()[0])

    def photo(self, photo_id: str) -> PhotoRecord | None:
        """The record of one photo."""
        return next(self._select("WHERE id = ?", (photo_id,)), None)

    def photo_named(self, name: str) -> PhotoRecord | None:
        """The record of the photo that a person means: ids of older indexes are as the file system gave them."""
        return self.photo(name) or self.photo(normal_name(name))

    def photos_at(self, rows: Sequence[int]) -> dict[int, PhotoRecord]:
        """Records by row; a row without a photo is left out."""
        found: dict[int, PhotoRecord] = {}
        for first in range(0, len(rows), VALUES_AT_ONCE):
            some = rows[first : first + VALUES_AT_ONCE]
            marks = ", ".join("?" * len(some))
            found |= {record.row: record for record in self._select(f"WHERE row IN ({marks})", some)}
        return found

    def photos(self) -> Iterator[PhotoRecord]:
        """Every record, by row."""
        return self._select("ORDER BY row")

    def latest(self, k: int, where: Where = EVERYWHERE, after: tuple[str, int] | None = None) -> list[PhotoRecord]:
        """The k records taken last of those that pass a filter, the latest first; of equals the one added later.

        after  `taken` and `row` of a record: only those that come after it in this order
        """
        terms, values = self._condition(where)
        if after is not None:
            terms, values = f"{terms} AND (taken, row) < (?, ?)", [*values, *after]
        return list(self._select(f"WHERE {terms} ORDER BY taken DESC, row DESC LIMIT ?", (*values, k)))

    def known(self) -> dict[str, Known]:
        """By photo id, what tells whether its file has changed."""
        found = self._connection.execute("SELECT id, size, modified_ns, changed_ns, inode, sha256 FROM photos")
        return {name: Known(Stamp(*stamp), sha256) for name, *stamp, sha256 in found}

    def ids_at_path(self, path: bytes) -> list[str]:
        """Ids of the photos at a path below their folders."""
        found = self._connection.execute("SELECT id FROM photos WHERE path = ?", (path,))
        return [name for (name,) in found]

    def rows(self, where: Where) -> IntArray:
        """(n,) rows of the photos that pass a filter, rising."""
        terms, values = self._condition(where)
        return self._rows(f"photos WHERE {terms} ORDER BY row", values)

    def _condition(self, where: Where) -> tuple[str, list[str | int]]:
        labels = [root.label for root in self.roots() if root.label] if where.folder == "" else []
        return condition(where, labels)

    def has_folder(self, folder: str) -> bool:
        """Whether a photo, or a file that was skipped, lies in a folder, named as ids begin."""
        inside = "SELECT 1 FROM {} WHERE id >= ? AND id < ? LIMIT 1"
        tables = ("photos", "skipped")
        return any(self._connection.execute(inside.format(table), between(folder)).fetchone() for table in tables)

    def folders(self) -> dict[str, int]:
        """Every folder that photos lie in, and those above, as ids begin, sorted; of each how many photos are below."""
        inside = Counter(name.rpartition("/")[0] for (name,) in self._connection.execute("SELECT id FROM photos"))
        found = Counter[str]()
        for folder, count in inside.items():
            parts = folder.split("/")
            for depth in range(1, len(parts) + 1):
                found["/".join(parts[:depth])] += count
        del found[""]
        return dict(sorted(found.items()))

    def dead_rows(self) -> IntArray:
        """(n,) rows whose photos are gone, rising."""
        return self._rows("dead ORDER BY row")

    def skipped(self) -> list[SkippedRecord]:
        """Files without a photo, by id."""
        found = self._connection.execute(f"SELECT {_SKIPPED} FROM skipped ORDER BY id")  # noqa: S608 - our names
        return [
            SkippedRecord(name, reason, kind, None if stamp[0] is None else Stamp(*stamp), reader)
            for name, reason, kind, reader, *stamp in found
        ]

    def file_stamps(self) -> dict[str, Stamp]:
        """By name, the stamps of the files of vectors, regions and thumbnails as the last commit left them."""
        found = self._connection.execute("SELECT name, size, modified_ns, changed_ns, inode FROM files")
        return {name: Stamp(*stamp) for name, *stamp in found}

    def info(self) -> bytes | None:
        """A copy of index.json, where the index has one."""
        row = self._connection.execute("SELECT json FROM info").fetchone()
        return None if row is None else bytes(row[0])

    def _select(self, condition: str, values: Sequence[object] = ()) -> Iterator[PhotoRecord]:
        found = self._connection.execute(f"SELECT {_COLUMNS} FROM photos {condition}", values)  # noqa: S608
        return map(_record, found)

    def _rows(self, source: str, values: Sequence[object] = ()) -> IntArray:
        found = self._connection.execute(f"SELECT row FROM {source}", values)  # noqa: S608 - our names
        return np.array([row for (row,) in found], dtype=np.int64)


class Change(View):
    """Changes that are committed together or not at all."""

    def add(self, photos: Sequence[PhotoRecord]) -> None:
        """New photos, on rows of their own."""
        marks = ", ".join("?" * len(_NAMES))
        self._connection.executemany(
            f"INSERT INTO photos ({_COLUMNS}) VALUES ({marks})",  # noqa: S608 - our names
            [astuple(photo) for photo in photos],
        )

    def remove(self, ids: Iterable[str]) -> None:
        """Photos that are gone; their rows are dead from now on."""
        for photo_id in ids:
            self._connection.execute("INSERT INTO dead SELECT row FROM photos WHERE id = ?", (photo_id,))
            self._connection.execute("DELETE FROM photos WHERE id = ?", (photo_id,))

    def rename(self, photo: MovedPhoto) -> None:
        """A photo whose file has its old content: it keeps its row, regions and thumbnail."""
        settings = "id = ?, path = ?, size = ?, modified_ns = ?, changed_ns = ?, inode = ?"
        values = (photo.id, photo.path, *photo.stamp, photo.old_id)
        self._connection.execute(f"UPDATE photos SET {settings} WHERE id = ?", values)  # noqa: S608 - our names

    def skip(self, skipped: Sequence[SkippedRecord]) -> None:
        """Files that have no photo."""
        self._connection.executemany(
            f"INSERT OR REPLACE INTO skipped ({_SKIPPED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - our names
            [(file.id, file.reason, file.kind, file.reader, *(file.stamp or (None,) * 4)) for file in skipped],
        )

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
        settings = ", ".join(f"{name} = ?" for name in State.__struct_fields__)
        self._connection.execute(f"UPDATE state SET {settings}", msgspec.structs.astuple(state))  # noqa: S608

    def keep_settings(self, settings: Settings) -> None:
        """What the next run needs."""
        self._connection.execute("DELETE FROM settings")
        self._connection.execute("INSERT INTO settings VALUES (?)", (msgspec.json.encode(settings),))

    def stamp_files(self, stamps: dict[str, Stamp]) -> None:
        """The files of vectors, regions and thumbnails as this commit leaves them."""
        self._connection.execute("DELETE FROM files")
        rows = [(name, *stamp) for name, stamp in stamps.items()]
        self._connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def keep_info(self, content: bytes) -> None:
        """A copy of index.json."""
        self._connection.execute("DELETE FROM info")
        self._connection.execute("INSERT INTO info VALUES (?)", (content,))


def _record(row: tuple[Any, ...]) -> PhotoRecord:
    """A row of the table as a record. Raises `DamagedRecordsError` where no index can have written it."""
    values = dict(zip(_NAMES, row, strict=True))
    try:
        record = msgspec.convert(values | {"has_scores": bool(values["has_scores"])}, PhotoRecord)
    except msgspec.ValidationError as error:
        raise DamagedRecordsError(f"the record in row {str(values['row'])[:20]} is damaged ({error})") from error
    # A path of bytes need not be text; what matters here is in its ASCII part.
    path = PurePosixPath(record.path.decode("latin-1"))
    if path.is_absolute() or ".." in path.parts:
        raise DamagedRecordsError(f"the record in row {record.row} names a file outside of the folder of the photos")
    return record
