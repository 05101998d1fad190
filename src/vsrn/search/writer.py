"""Adds to an index so that a kill at any moment leaves one that opens and holds everything acknowledged.

Vectors, regions and thumbnails reach the disk first; the commit of the records that name them acknowledges them.
Whoever writes next cuts off what was never named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vsrn.errors import SearchError
from vsrn.regions.growing import sync_folder
from vsrn.regions.store import FloatArray, IntArray, Regions
from vsrn.search.engine import Keeper
from vsrn.search.engines import open_keeper
from vsrn.search.growing import GrowingFile
from vsrn.search.layout import (
    GROWING,
    LOCK_FILE,
    RECORDS_FILE,
    IndexInfo,
    growing_path,
    open_vectors,
    pack_regions,
    read_info,
    read_piece,
    regions_size,
)
from vsrn.search.records import Change, PhotoRecord, Records, SkippedRecord, State

# Where more of the rows are dead than this, the files are written anew without them.
MOST_DEAD = 0.25


@dataclass(frozen=True)
class NewPhoto:
    """A photo to add, or to put in the place of the one with its id. As in `PhotoRecord`, and:

    vector     (D,) its embedding
    regions    what it was made of
    thumbnail  a JPEG
    """

    id: str
    path: bytes
    size: int
    modified_ns: int
    sha256: str
    width: int
    height: int
    taken: str
    vector: FloatArray
    regions: Regions
    thumbnail: bytes


@dataclass(frozen=True)
class Settled:
    """What became of some files.

    added    photos, new or changed
    skipped  files that cannot be read
    touched  (id, size, modified_ns) of files with a new time and their old content
    gone     ids of files that are there no more
    """

    added: Sequence[NewPhoto] = field(default_factory=list)
    skipped: Sequence[SkippedRecord] = field(default_factory=list)
    touched: Sequence[tuple[str, int, int]] = field(default_factory=list)
    gone: Sequence[str] = field(default_factory=list)


class IndexLock:
    """Held by the one process that writes to an index."""

    def __init__(self, folder: Path) -> None:
        """Raises `SearchError` where another process holds it."""
        self._handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise SearchError(f"{folder} is being written by another vsrn index; wait for it or stop it.") from error

    def release(self) -> None:
        """Let the next one write."""
        os.close(self._handle)


class IndexWriter:
    """The one who adds to an index, from `IndexLock` to `finish`."""

    def __init__(self, folder: Path) -> None:
        """Open an index where it stopped. Raises `SearchError` where it cannot be, or another process writes to it."""
        self.folder = folder
        self.info: IndexInfo = read_info(folder)
        self._lock = IndexLock(folder)
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release)
            self.records = Records(folder / RECORDS_FILE)
            undo.callback(self.records.close)
            with self.records.read() as view:
                self._state, dead = view.state(), view.dead_rows()
            _delete_other_generations(folder, self._state.generation)
            self._files = _open_files(folder, self.info, self._state)
            undo.callback(self._close_files)
            self._keeper: Keeper = open_keeper(folder, self.info)
            undo.callback(self._keeper.close)
            self._keeper.begin(self._state.generation, open_vectors(folder, self.info, self._state), dead)
            self._undo = undo.pop_all()

    def settle(self, settled: Settled) -> None:
        """Make it so: it is on disk, whatever happens, when this returns. Raises `OSError` where the disk is full."""
        records = self._append(settled.added)
        if records:
            vectors = np.stack([photo.vector for photo in settled.added]).astype("<f2")
            self._keeper.add(self._state.num_rows, vectors)
        replaced = [*(photo.id for photo in settled.added), *(file.id for file in settled.skipped), *settled.gone]
        with self.records.write() as change:
            died = _rows_of(change, replaced)
            change.remove(replaced)
            change.unskip(replaced)
            change.add(records)
            change.skip(settled.skipped)
            for touched in settled.touched:
                change.touch(*touched)
            state = self._next_state(num_rows=self._state.num_rows + len(records))
            change.reach(state)
        self._state = state
        self._keeper.remove(died)

    def move_root(self, root: bytes) -> None:
        """The folder of the photos is another from now on."""
        with self.records.write() as change:
            state = self._next_state(root=root)
            change.reach(state)
        self._state = state

    def finish(self) -> None:
        """Compact where too much is dead, and let the engine do what it does at the end."""
        with self.records.read() as view:
            num_dead = len(view.dead_rows())
        if num_dead > MOST_DEAD * self._state.num_rows:
            self._compact()
        self._keeper.finish(self._state.generation, open_vectors(self.folder, self.info, self._state))

    def close(self) -> None:
        """Let go of everything; the index can be added to again later."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, photos: Sequence[NewPhoto]) -> list[PhotoRecord]:
        """Write what records will point to, and wait until it is on disk."""
        # A batch that failed half-way left bytes behind that nobody named.
        for kind, end in _ends(self.info, self._state).items():
            self._files[kind].rewind(end)
        records = []
        for place, photo in enumerate(photos):
            regions_at = self._append_regions(photo.regions)
            records.append(
                PhotoRecord(
                    row=self._state.num_rows + place,
                    **{name: getattr(photo, name) for name in _SAME},
                    num_regions=len(photo.regions.features),
                    regions_at=regions_at,
                    has_scores=photo.regions.scores is not None,
                    thumbnail_at=self._files["thumbnails"].append(photo.thumbnail),
                    thumbnail_size=len(photo.thumbnail),
                )
            )
            self._files["vectors"].append(photo.vector.astype("<f2").tobytes())
        if records:
            for file in self._files.values():
                file.sync()
        return records

    def _append_regions(self, regions: Regions) -> int | None:
        """Where they begin, or None where the index does not keep them."""
        return self._files["regions"].append(pack_regions(regions, self.info.names)) if self.info.explain else None

    def _next_state(self, num_rows: int | None = None, root: bytes | None = None) -> State:
        return State(
            version=self._state.version + 1,
            generation=self._state.generation,
            num_rows=self._state.num_rows if num_rows is None else num_rows,
            regions_end=self._files["regions"].end,
            thumbnails_end=self._files["thumbnails"].end,
            root=self._state.root if root is None else root,
        )

    def _compact(self) -> None:
        """Write the living into the files of the next generation, and let one commit make them the index."""
        old, generation = self._state, self._state.generation + 1
        empty = dataclasses.replace(old, generation=generation, num_rows=0, regions_end=0, thumbnails_end=0)
        files = _open_files(self.folder, self.info, empty)
        try:
            with self.records.read() as view:
                moved = [(row, *self._copy(photo, files, old), photo.row) for row, photo in enumerate(view.photos())]
            for file in files.values():
                file.sync()
        finally:
            for file in files.values():
                file.close()
        state = dataclasses.replace(
            empty,
            version=old.version + 1,
            num_rows=len(moved),
            regions_end=files["regions"].end,
            thumbnails_end=files["thumbnails"].end,
        )
        # An earlier compaction may have been killed here, and what it left is of other photos.
        self._keeper.forget(generation)
        self._keeper.begin(generation, open_vectors(self.folder, self.info, state), np.empty(0, dtype=np.int64))
        with self.records.write() as change:
            change.move(moved)
            change.reach(state)
        self._state = state
        self._close_files()
        self._files = _open_files(self.folder, self.info, state)
        self._keeper.forget(old.generation)
        _delete_other_generations(self.folder, generation)

    def _copy(self, photo: PhotoRecord, files: dict[str, GrowingFile], old: State) -> tuple[int | None, int]:
        """Copy what belongs to a photo; where its regions and its thumbnail begin now."""
        row_bytes = 2 * self.info.joint_dim

        def piece(kind: str, start: int, size: int) -> int:
            return files[kind].append(read_piece(growing_path(self.folder, kind, old.generation), start, size))

        piece("vectors", photo.row * row_bytes, row_bytes)
        regions_at = None
        if photo.regions_at is not None:
            regions_at = piece("regions", photo.regions_at, regions_size(photo, self.info))
        return regions_at, piece("thumbnails", photo.thumbnail_at, photo.thumbnail_size)

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()


_SAME = ("id", "path", "size", "modified_ns", "sha256", "width", "height", "taken")


def _ends(info: IndexInfo, state: State) -> dict[str, int]:
    """Bytes of each growing file that are acknowledged."""
    return {
        "vectors": 2 * info.joint_dim * state.num_rows,
        "regions": state.regions_end,
        "thumbnails": state.thumbnails_end,
    }


def _open_files(folder: Path, info: IndexInfo, state: State) -> dict[str, GrowingFile]:
    files: dict[str, GrowingFile] = {}
    try:
        for kind, end in _ends(info, state).items():
            files[kind] = GrowingFile(growing_path(folder, kind, state.generation), end)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    sync_folder(folder)
    return files


def _delete_other_generations(folder: Path, generation: int) -> None:
    """Files that a compaction left behind, before its commit or after it."""
    for kind in GROWING:
        for path in folder.glob(f"{kind}-*"):
            if path != growing_path(folder, kind, generation):
                path.unlink()
    for path in folder.glob("graph-*.faiss"):
        if not path.name.startswith(f"graph-{generation}-"):
            path.unlink()


def _rows_of(change: Change, ids: Iterable[str]) -> IntArray:
    found = (change.photo(photo_id) for photo_id in ids)
    return np.array(sorted(photo.row for photo in found if photo is not None), dtype=np.int64)
