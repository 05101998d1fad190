"""The SQLite file of an index: made, opened whoever made it, and read where nobody may write.

The file may come from a stranger. Its tables must be exactly those that this module makes, since a view, a trigger or
a virtual table of the same name would run what the stranger wrote; each transaction has a limit of steps.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from vsrn.errors import SearchError
from vsrn.files import Closing
from vsrn.search.layout import RECORDS_FILE
from vsrn.search.records import REMEDY, Change, DamagedRecordsError, PhotoRecord, State, View
from vsrn.search.roots import Settings
from vsrn.search.where import NAMED, is_named

SECONDS_TO_WAIT = 30.0
# Listing a million photos takes about 5e7 steps; a statement that never ends is stopped after a minute or so.
MOST_STEPS, STEPS_AT_ONCE = 5_000_000_000, 10_000_000
# A record takes 350 bytes, a copy of index.json with 2,000 names of classes 30 KB.
LONGEST_VALUE = 10_000_000

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
# What the first indexes lack; whoever writes to one of them adds it.
_LATER = """
ALTER TABLE photos ADD COLUMN inode INTEGER;
ALTER TABLE photos ADD COLUMN changed_ns INTEGER;
ALTER TABLE photos ADD COLUMN vector_crc INTEGER;
ALTER TABLE photos ADD COLUMN regions_crc INTEGER;
ALTER TABLE photos ADD COLUMN thumbnail_crc INTEGER;
ALTER TABLE skipped ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE skipped ADD COLUMN reader TEXT NOT NULL DEFAULT '';
ALTER TABLE skipped ADD COLUMN size INTEGER;
ALTER TABLE skipped ADD COLUMN modified_ns INTEGER;
ALTER TABLE skipped ADD COLUMN changed_ns INTEGER;
ALTER TABLE skipped ADD COLUMN inode INTEGER;
CREATE TABLE files (
    name TEXT PRIMARY KEY, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL
);
CREATE TABLE info (json BLOB NOT NULL);
"""
# What indexes of one folder lack.
_LATEST = """
CREATE TABLE settings (json BLOB NOT NULL);
"""
# The same for whoever only reads one of them: these views stand before its tables.
_LATEST_TO_READ = "CREATE TEMP VIEW settings AS SELECT x'' AS json WHERE 0;"
_LATER_TO_READ = """
CREATE TEMP VIEW photos AS SELECT *, NULL AS inode, NULL AS changed_ns, NULL AS vector_crc, NULL AS regions_crc,
    NULL AS thumbnail_crc FROM main.photos;
CREATE TEMP VIEW skipped AS SELECT id, reason, '' AS kind, '' AS reader, NULL AS size, NULL AS modified_ns,
    NULL AS changed_ns, NULL AS inode FROM main.skipped;
CREATE TEMP VIEW files AS SELECT '' AS name, 0 AS size, 0 AS modified_ns, 0 AS changed_ns, 0 AS inode WHERE 0;
CREATE TEMP VIEW info AS SELECT x'' AS json WHERE 0;
"""


class Records(Closing):
    """The database. Threads may share it: whoever reads or writes has a connection to itself for that long."""

    def __init__(self, folder: Path) -> None:
        """Open those of an index. Raises `SearchError` where they are missing or not such as `create_records` makes."""
        self.path = path = folder / RECORDS_FILE
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = threading.Event()
        _check_files(path)
        self._inode = path.stat().st_ino
        with contextlib.suppress(FileNotFoundError), self.read():
            pass

    def bring_up_to_date(self) -> None:
        """Add what the tables of an older index lack."""
        with self._connection() as connection:
            before = _schema_of(connection)
            if before == _SCHEMA:
                return
            with _committing(connection):
                _run(connection, (_LATER if before == _OLDEST_SCHEMA else "") + _LATEST)

    @contextlib.contextmanager
    def read(self) -> Iterator[View]:
        """One view for as long as the block lasts.

        Raises `SearchError` where the database is damaged, and `FileNotFoundError` where it cannot be locked and
        another process changed it meanwhile: read it again.
        """
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                schema = _schema_of(connection)
                _run(connection, _LATER_TO_READ if schema == _OLDEST_SCHEMA else "")
                _run(connection, _LATEST_TO_READ if schema != _SCHEMA else "")
                yield View(connection)
            finally:
                connection.execute("ROLLBACK")  # what stands in for tables is gone too

    @contextlib.contextmanager
    def write(self) -> Iterator[Change]:
        """Changes that reach the disk when the block ends well, and never happened otherwise."""
        with self._connection() as connection, _committing(connection):
            yield Change(connection)

    def faults(self) -> list[str]:
        """What is wrong with the file, by SQLite's own check and by a look at every row; nothing where it is whole."""
        try:
            with self._connection() as connection:
                found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(5)")]
            with self.read() as view:
                view.roots()
                deque(view.photos(), maxlen=0)
        except DamagedRecordsError as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def salvage(self, num_rows: int) -> tuple[State | None, Settings, list[PhotoRecord]]:
        """What can still be read of a damaged file: state, settings, and records of the first `num_rows` rows."""
        state, settings = None, Settings()
        found: list[PhotoRecord] = []
        with contextlib.suppress(SearchError), self.read() as view:
            with contextlib.suppress(sqlite3.DatabaseError, DamagedRecordsError):
                state = view.state()
            with contextlib.suppress(sqlite3.DatabaseError, DamagedRecordsError):
                settings = view.settings()
            for row in range(num_rows):
                with contextlib.suppress(sqlite3.DatabaseError, DamagedRecordsError):
                    found += view.photos_at([row]).values()
        return state, settings, found

    def close(self) -> None:
        """Close the database; connections in use are closed when they are given back."""
        self._closed.set()
        self._forget_connections()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if self._closed.is_set():
            raise SearchError(f"{self.path.parent} was closed; open the index again.")
        with _told(self.path):
            if not os.access(self.path.parent, os.W_OK):
                with _reading_only(self.path) as connection:
                    yield connection
                return
            if self.path.stat().st_ino != self._inode:
                self._forget_connections()  # damaged records were replaced by mended ones
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = _connect(self.path, "mode=rw")
            _limit_steps(connection)
            try:
                yield connection
            finally:
                self._idle.append(connection)
                if self._closed.is_set():
                    self.close()

    def _forget_connections(self) -> None:
        self._inode = self.path.stat().st_ino if self.path.exists() else 0
        while self._idle:
            self._idle.pop().close()


def create_records(
    path: Path,
    state: State,
    info: bytes,
    photos: Sequence[PhotoRecord] = (),
    settings: Settings = Settings(),  # noqa: B008 - it is frozen
) -> None:
    """Make the records of an index in place of those that are there.

    info    the copy of index.json
    photos  of rows below the state's; rows without one are dead
    """
    for leftover in (path, *beside(path), Path(f"{path}-journal")):
        leftover.unlink(missing_ok=True)
    with _told(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        with _committing(connection):
            _run(connection, _TABLES + _LATER + _LATEST)
            connection.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(state))
            change = Change(connection)
            change.keep_settings(settings)
            change.add(photos)
            dead = set(range(state.num_rows)) - {photo.row for photo in photos}
            connection.executemany("INSERT INTO dead VALUES (?)", [(row,) for row in dead])
            change.keep_info(info)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _limit_steps(connection: sqlite3.Connection) -> None:
    """Have SQLite stop once a connection has taken too many steps from now on."""
    left = itertools.count(MOST_STEPS // STEPS_AT_ONCE, -1)
    connection.set_progress_handler(lambda: next(left) <= 0, STEPS_AT_ONCE)


@contextlib.contextmanager
def _reading_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection where this process may not write in the folder.

    SQLite shares a file in WAL mode through files beside it. Where they are not there, nobody writes at the moment:
    the file is read as it lies, and compared before and after. Where a killed writer left a WAL, which reading would
    have to finish, both are copied to a place where SQLite may do so.
    """
    before = _place_of(path)
    with contextlib.ExitStack() as opened:
        try:
            connection = _connect(path, "mode=ro" if before[0] else "mode=ro&immutable=1")
        except sqlite3.OperationalError:
            if not before[0]:
                raise
            folder = opened.enter_context(tempfile.TemporaryDirectory())
            for source in (path, Path(f"{path}-wal")):
                shutil.copyfile(source, Path(folder, source.name))
            connection = _connect(Path(folder, path.name), "mode=rw")
        opened.callback(connection.close)
        yield connection
    if not before[0] and _place_of(path) != before:
        raise FileNotFoundError(errno.ENOENT, "it was replaced while it was read", str(path))


def _place_of(path: Path) -> tuple[int, int, int, int]:
    """What changes whenever the records do: bytes of the WAL, and the file's inode, size and time."""
    waiting, status = Path(f"{path}-wal"), path.stat()
    return waiting.stat().st_size if waiting.exists() else 0, status.st_ino, status.st_size, status.st_mtime_ns


def _connect(path: Path, how: str) -> sqlite3.Connection:
    """A connection that trusts nothing in the file.

    Raises `DamagedRecordsError` where it has no tables, `SearchError` where its tables are not ours, and
    `sqlite3.DatabaseError` where it cannot be read.
    """
    place = f"{path.absolute().as_uri()}?{how}"
    connection = sqlite3.connect(place, SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False, uri=True)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA synchronous = FULL")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
        connection.create_function(NAMED, 2, is_named, deterministic=True)
        _limit_steps(connection)
        schema = _schema_of(connection)
        if not schema:
            raise DamagedRecordsError(f"{path} is empty; {REMEDY}")
        if schema not in (_OLDEST_SCHEMA, _OLDER_SCHEMA, _SCHEMA):
            raise SearchError(f"{path} is not what `vsrn index` makes: its tables are others; do not use this index.")
    except BaseException:
        connection.close()
        raise
    return connection


def _schema_of(connection: sqlite3.Connection) -> frozenset[tuple[str, str, str, str | None]]:
    return frozenset(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


def _made_by(statements: str) -> frozenset[tuple[str, str, str, str | None]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        _run(connection, statements)
        return _schema_of(connection)


def _run(connection: sqlite3.Connection, statements: str) -> None:
    # `executescript` would commit first.
    for statement in filter(str.strip, statements.split(";")):
        connection.execute(statement)


@contextlib.contextmanager
def _committing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is committed when the block ends well, and undone otherwise."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


_OLDEST_SCHEMA, _OLDER_SCHEMA, _SCHEMA = map(_made_by, (_TABLES, _TABLES + _LATER, _TABLES + _LATER + _LATEST))


def beside(path: Path) -> list[Path]:
    """The files that SQLite keeps beside the records."""
    return [Path(f"{path}-wal"), Path(f"{path}-shm")]


def _check_files(path: Path) -> None:
    """Raise `SearchError` where the records are missing, or a file of theirs is a link or foreign."""
    # A rollback journal can have SQLite delete any file, and WAL needs none.
    if os.path.lexists(f"{path}-journal"):
        raise SearchError(f"{path}-journal is not what `vsrn index` makes; do not use this index.")
    for file in (path, *beside(path)):
        try:
            status = file.lstat()
        except FileNotFoundError:
            if file == path:
                raise DamagedRecordsError(f"{path} is missing; {REMEDY}") from None
            continue
        except OSError as error:
            raise SearchError(f"{file} cannot be used ({error.strerror}); check its permissions.") from error
        if not stat.S_ISREG(status.st_mode):
            raise SearchError(f"{file} is a link or no file, which `vsrn index` never makes; do not use this index.")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors, in our words."""
    try:
        yield
    except DamagedRecordsError as error:
        if REMEDY in str(error):
            raise
        raise DamagedRecordsError(f"{path}: {error}; {REMEDY}") from error
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if "interrupted" in str(error):
            raise SearchError(f"{path} takes more steps than any index needs; do not use this index.") from error
        if isinstance(error, sqlite3.OperationalError):  # locked, not to be opened, not to be written
            raise SearchError(f"{path} cannot be used ({error}); see that it may be opened, and try again.") from error
        raise DamagedRecordsError(f"{path} cannot be used ({error}); {REMEDY}") from error
