"""Adds to an index so that a kill at any moment leaves one that opens and holds everything acknowledged.

Vectors, regions and thumbnails reach the disk first; the commit of the records that name them acknowledges them.
Whoever writes next cuts off what was never named. Before anything is written or cut, the index is compared with its
checksums: `IndexWriter.damaged` says which photos have to be read again.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from vsrn.data.regions import Regions
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import SearchError
from vsrn.files import sync_folder
from vsrn.metrics import FloatArray, IntArray
from vsrn.search.database import Records
from vsrn.search.engine import Keeper, engine_of
from vsrn.search.layout import (
    GROWING,
    RECORDS_FILE,
    GrowingFile,
    IndexInfo,
    IndexLock,
    growing_path,
    info_as_json,
    open_model,
    open_vectors,
    pack_regions,
    piece_of,
    read_info,
    read_piece,
)
from vsrn.search.mend import damaged_pieces, stamp_of
from vsrn.search.records import Change, PhotoRecord, SkippedRecord, Stamp, State

# Compaction starts where more than this share of the rows belongs to removed photos.
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
    stamp: Stamp
    sha256: str
    width: int
    height: int
    taken: str
    vector: FloatArray
    regions: Regions
    thumbnail: bytes


@dataclass(frozen=True)
class MovedPhoto:
    """A photo of the index whose file has another name: `old_id` has become `id`, at `path`."""

    old_id: str
    id: str
    path: bytes
    stamp: Stamp


@dataclass(frozen=True)
class Changes:
    """What became of some files.

    added    photos, new or changed
    skipped  files that have no photo
    touched  (id, stamp) of files with a new stamp and their old content
    moved    photos whose files have other names
    gone     ids of files that are there no more
    """

    added: Sequence[NewPhoto] = field(default_factory=list)
    skipped: Sequence[SkippedRecord] = field(default_factory=list)
    touched: Sequence[tuple[str, Stamp]] = field(default_factory=list)
    moved: Sequence[MovedPhoto] = field(default_factory=list)
    gone: Sequence[str] = field(default_factory=list)


class IndexWriter:
    """The one who adds to an index, from `IndexLock` to `finish`.

    encoder  the model of the index
    damaged  by photo id, which of its vector, regions and thumbnail are not what was written
    """

    def __init__(self, folder: Path, uri: str = "", device: str = "auto") -> None:
        """Open an index where it stopped; `uri` and `device` as in `open_index`.

        Raises `SearchError` where it cannot be opened or another process writes to it, and `CheckpointError` where
        its model is not the one that it was made with; then nothing has been written or cut.
        """
        self.folder = folder
        self.info: IndexInfo = read_info(folder)
        self._lock = IndexLock(folder)
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release)
            self.encoder: OnnxEncoder = open_model(folder, self.info, device)
            self.records = Records(folder / RECORDS_FILE)
            undo.callback(self.records.close)
            self.records.bring_up_to_date()
            with self.records.read() as view:
                self._state, dead = view.state(), view.dead_rows()
                normalised = self.encoder.config.model.image_norm
                self.damaged = damaged_pieces(folder, self.info, view, normalised=normalised, stamped=True)
            _delete_other_generations(folder, self._state.generation)
            self._files = _open_files(folder, self.info, self._state)
            undo.callback(self._close_files)
            self._keeper: Keeper = engine_of(self.info).open_keeper(folder, self.info, uri)
            undo.callback(self._keeper.close)
            self._keeper.begin(self._state.generation, open_vectors(folder, self.info, self._state), dead)
            self._undo = undo.pop_all()

    def write(self, changes: Changes) -> None:
        """Write changes: they are on disk when this returns. Raises `OSError` where the disk is full."""
        records = self._append(changes.added)
        if records:
            vectors = np.stack([photo.vector for photo in changes.added]).astype("<f2")
            self._keeper.add(self._state.num_rows, vectors)
        replaced = [*(photo.id for photo in changes.added), *(file.id for file in changes.skipped), *changes.gone]
        with self.records.write() as change:
            died = _rows_of(change, replaced)
            change.remove(replaced)
            change.unskip([*replaced, *(photo.id for photo in changes.moved)])
            change.add(records)
            change.skip(changes.skipped)
            for photo_id, stamp in changes.touched:
                change.touch(photo_id, stamp)
            for photo in changes.moved:
                change.rename(photo.old_id, photo.id, photo.path, photo.stamp)
            state = self._next_state(num_rows=self._state.num_rows + len(records))
            change.reach(state)
            # Until all damage is mended, the next writer has to look for the rest of it.
            change.stamp_files({} if self.damaged else self._stamps())
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
            num_dead, stamps, info = len(view.dead_rows()), view.file_stamps(), view.info()
        if num_dead > MOST_DEAD * self._state.num_rows:
            self._compact()
        if stamps != self._stamps() or info != info_as_json(self.info):
            with self.records.write() as change:
                change.stamp_files(self._stamps())
                change.keep_info(info_as_json(self.info))
        self._keeper.finish(self._state.generation, open_vectors(self.folder, self.info, self._state))

    def close(self) -> None:
        """Close everything; the index can be added to again later."""
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
            vector = photo.vector.astype("<f2").tobytes()
            regions = pack_regions(photo.regions, self.info.names) if self.info.explain else None
            records.append(
                PhotoRecord(
                    row=self._state.num_rows + place,
                    **{name: getattr(photo, name) for name in _SAME},
                    **photo.stamp._asdict(),
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

    def _stamps(self) -> dict[str, Stamp]:
        """The files of vectors, regions and thumbnails as they are now."""
        return {kind: stamp_of(file.status()) for kind, file in self._files.items()}

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
        empty = msgspec.structs.replace(old, generation=generation, num_rows=0, regions_end=0, thumbnails_end=0)
        files = _open_files(self.folder, self.info, empty)
        try:
            with self.records.read() as view:
                moved = [(row, *self._copy(photo, files, old), photo.row) for row, photo in enumerate(view.photos())]
            for file in files.values():
                file.sync()
            stamps = {kind: stamp_of(file.status()) for kind, file in files.items()}
        except SearchError:
            # A piece went bad since it was last looked at: the next run must look at all of them.
            with self.records.write() as change:
                change.stamp_files({})
            raise
        finally:
            for file in files.values():
                file.close()
        state = msgspec.structs.replace(
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
            change.stamp_files(stamps)
        self._state = state
        self._close_files()
        self._files = _open_files(self.folder, self.info, state)
        self._keeper.forget(old.generation)
        _delete_other_generations(self.folder, generation)

    def _copy(self, photo: PhotoRecord, files: dict[str, GrowingFile], old: State) -> tuple[int | None, int]:
        """Copy what belongs to a photo; where its regions and its thumbnail begin now."""
        places: dict[str, int | None] = {}
        for kind in GROWING:
            piece = piece_of(kind, photo, self.info)
            content = None if piece is None else read_piece(growing_path(self.folder, kind, old.generation), *piece)
            places[kind] = None if content is None else files[kind].append(content)
        thumbnail_at = places["thumbnails"]
        assert thumbnail_at is not None
        return places["regions"], thumbnail_at

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()


_SAME = ("id", "path", "sha256", "width", "height", "taken")


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
