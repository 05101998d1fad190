"""Adds to an index so that a kill at any moment leaves one that opens and holds everything acknowledged.

Vectors, regions and thumbnails reach the disk first; the commit of the records that name them acknowledges them.
Whoever writes next cuts off what was never named, once the index has been compared with its checksums.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from vsrn.data.regions import Regions
from vsrn.errors import SearchError
from vsrn.files import Closing, sync_folder
from vsrn.metrics import FloatArray
from vsrn.search import layout
from vsrn.search.database import Records
from vsrn.search.engine import open_keeper
from vsrn.search.layout import GROWING, GrowingFile, IndexInfo
from vsrn.search.mend import damaged_pieces
from vsrn.search.records import MovedPhoto, PhotoRecord, SkippedRecord, Stamp, State
from vsrn.search.roots import Settings

# Compaction starts where more than this share of the rows belongs to removed photos.
MOST_DEAD = 0.25


class NewPhoto(NamedTuple):
    """A photo to add, or to put in the place of the one with its id: its (D,) vector, and what that was made of."""

    record: PhotoRecord
    vector: FloatArray
    regions: Regions
    thumbnail: bytes


@dataclass(frozen=True)
class Changes:
    """What became of some files.

    added    photos, new or changed
    skipped  files that have no photo
    moved    photos whose files have other names or stamps, and their old content
    gone     ids of files that are there no more
    told     photos of the index whose files cannot be read at the moment; they stay as they are
    """

    added: Sequence[NewPhoto] = ()
    skipped: Sequence[SkippedRecord] = ()
    moved: Sequence[MovedPhoto] = ()
    gone: Sequence[str] = ()
    told: Sequence[SkippedRecord] = ()


class IndexWriter(Closing):
    """The one who adds to an index, from the lock to `finish`.

    encoder  the model of the index
    damaged  by photo id, which of its vector, regions and thumbnail are not what was written
    """

    def __init__(self, folder: Path, uri: str = "", device: str = "auto") -> None:
        """Open an index where it stopped; `uri` and `device` as in `Index`.

        Raises `SearchError` where it cannot be opened or another process writes to it, and `CheckpointError` where
        its model is not the one that it was made with; then nothing has been written or cut.
        """
        self.folder, self.info = folder, IndexInfo.read(folder)
        with contextlib.ExitStack() as undo:
            undo.enter_context(layout.index_lock(folder))
            self.encoder = layout.open_model(folder, self.info, device)
            self.records = undo.enter_context(Records(folder))
            self.records.bring_up_to_date()
            with self.records.read() as view:
                self._state, dead = view.state(), view.dead_rows()
                normalised = self.encoder.config.model.image_norm
                self.damaged = damaged_pieces(folder, self.info, view, normalised=normalised, stamped=True)
            _delete_other_generations(folder, self._state.generation)
            self._files = _open_files(folder, self.info, self._state)
            undo.callback(self._close_files)
            self._keeper = undo.enter_context(open_keeper(folder, self.info, uri))
            self._keeper.begin(self._state.generation, layout.open_vectors(folder, self.info, self._state), dead)
            self._undo = undo.pop_all()

    def write(self, changes: Changes) -> tuple[int, int]:
        """Make it so, on disk; gives how many photos were replaced, and how many are in the index no more.

        Raises `OSError` where the disk is full.
        """
        if not (changes.added or changes.skipped or changes.moved or changes.gone):
            return 0, 0
        records = self._append(changes.added)
        if records:
            vectors = np.stack([photo.vector for photo in changes.added]).astype("<f2")
            self._keeper.add(self._state.num_rows, vectors)
        replaced = [*(photo.id for photo in records), *(file.id for file in changes.skipped), *changes.gone]
        with self.records.write() as change:
            died = {photo.id: photo.row for photo in map(change.photo, replaced) if photo is not None}
            change.remove(replaced)
            change.unskip([*replaced, *(photo.id for photo in changes.moved)])
            change.add(records)
            change.skip(changes.skipped)
            for photo in changes.moved:
                change.rename(photo)
            state = _next_state(self._state, self._state.num_rows + len(records), self._files)
            change.reach(state)
            # Until all damage is mended, the next writer has to look for the rest of it.
            change.stamp_files({} if self.damaged else _stamps_of(self._files))
        self._state = state
        self._keeper.remove(np.array(sorted(died.values()), dtype=np.int64))
        num_changed = sum(record.id in died for record in records)
        return num_changed, len(died) - num_changed

    def settle(self, root: bytes, settings: Settings) -> None:
        """Keep the folder whose ids begin with no label (`State.root`), and what else the next run needs."""
        with self.records.write() as change:
            state = msgspec.structs.replace(self._state, version=self._state.version + 1, root=root)
            change.reach(state)
            change.keep_settings(settings)
        self._state = state

    def finish(self, settings: Settings) -> None:
        """Compact where too much is dead, let the engine do what it does at the end, and keep settings."""
        with self.records.read() as view:
            num_dead, stamps, info = len(view.dead_rows()), view.file_stamps(), view.info()
        if num_dead > MOST_DEAD * self._state.num_rows:
            self._compact()
        with self.records.write() as change:
            change.keep_settings(settings)
            if stamps != _stamps_of(self._files) or info != self.info.as_json():
                change.stamp_files(_stamps_of(self._files))
                change.keep_info(self.info.as_json())
        self._keeper.finish(self._state.generation, layout.open_vectors(self.folder, self.info, self._state))

    def close(self) -> None:
        """Close everything; the index can be added to again later."""
        self._undo.close()

    def _append(self, photos: Sequence[NewPhoto]) -> list[PhotoRecord]:
        """Write what records will point to, and wait until it is on disk."""
        # A batch that failed half-way left bytes behind that nobody named.
        for file in self._files.values():
            file.rewind(self._state)
        records = []
        for place, photo in enumerate(photos):
            vector = photo.vector.astype("<f2").tobytes()
            regions = layout.pack_regions(photo.regions, self.info.names) if self.info.explain else None
            records.append(
                replace(
                    photo.record,
                    row=self._state.num_rows + place,
                    num_regions=len(photo.regions.features),
                    regions_at=None if regions is None else self._files["regions"].append(regions),
                    has_scores=photo.regions.scores is not None,
                    thumbnail_at=self._files["thumbnails"].append(photo.thumbnail),
                    thumbnail_size=len(photo.thumbnail),
                    vector_crc=zlib.crc32(vector),
                    regions_crc=None if regions is None else zlib.crc32(regions),
                    thumbnail_crc=zlib.crc32(photo.thumbnail),
                )
            )
            self._files["vectors"].append(vector)
        if records:
            for file in self._files.values():
                file.sync()
        return records

    def _compact(self) -> None:
        """Write the living into the files of the next generation, and let one commit make them the index."""
        old, generation = self._state, self._state.generation + 1
        empty = msgspec.structs.replace(old, generation=generation, num_rows=0, regions_end=0, thumbnails_end=0)
        files = _open_files(self.folder, self.info, empty)
        try:
            moved = []
            with self.records.read() as view:
                for row, photo in enumerate(view.photos()):
                    places = {kind: file.append(self._files[kind].piece(photo)) for kind, file in files.items()}
                    regions_at = None if photo.regions_at is None else places["regions"]
                    moved.append((row, regions_at, places["thumbnails"], photo.row))
            for file in files.values():
                file.sync()
            stamps = _stamps_of(files)
        except SearchError:
            # A piece went bad since it was last looked at: the next run must look at all of them.
            with self.records.write() as change:
                change.stamp_files({})
            raise
        finally:
            for file in files.values():
                file.close()
        state = _next_state(empty, len(moved), files)
        # An earlier compaction may have been killed here, and what it left is of other photos.
        self._keeper.forget(generation)
        self._keeper.begin(generation, layout.open_vectors(self.folder, self.info, state), np.empty(0, dtype=np.int64))
        with self.records.write() as change:
            change.move(moved)
            change.reach(state)
            change.stamp_files(stamps)
        self._state = state
        self._close_files()
        self._files = _open_files(self.folder, self.info, state)
        self._keeper.forget(old.generation)
        _delete_other_generations(self.folder, generation)

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()


def _next_state(old: State, num_rows: int, files: dict[str, GrowingFile]) -> State:
    ends = {f"{kind}_end": files[kind].end for kind in ("regions", "thumbnails")}
    return msgspec.structs.replace(old, version=old.version + 1, num_rows=num_rows, **ends)


def _stamps_of(files: dict[str, GrowingFile]) -> dict[str, Stamp]:
    """The files of vectors, regions and thumbnails as they are now."""
    return {kind: Stamp.of_status(file.status()) for kind, file in files.items()}


def _open_files(folder: Path, info: IndexInfo, state: State) -> dict[str, GrowingFile]:
    with contextlib.ExitStack() as undo:
        files = {kind: undo.enter_context(GrowingFile(folder, kind, info, state, write=True)) for kind in GROWING}
        undo.pop_all()
    sync_folder(folder)
    return files


def _delete_other_generations(folder: Path, generation: int) -> None:
    """Files that a compaction left behind, before its commit or after it."""
    for kind in (*GROWING, "graph"):
        for path in folder.glob(f"{kind}-*"):
            if not path.name.startswith((f"{kind}-{generation}.", f"{kind}-{generation}-")):
                path.unlink()
