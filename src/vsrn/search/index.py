"""An index of photos as those see it who ask: sentences, photos or vectors in, hits out.

    with vsrn.open_index("idx/") as index:
        index.search("two dogs play on a beach", k=5)     # [Hit(id, score, path), ...]

Nothing here writes. Threads may share an index, and another process may add to it meanwhile: every call sees the
index as one commit left it.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from vsrn.data.regions import Regions
from vsrn.encoders.explain import ExplainView, Explanation, explain_regions
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import SearchError, UnknownPhotoError
from vsrn.files import normal_name, printable
from vsrn.metrics import FloatArray, IntArray
from vsrn.search.database import Records
from vsrn.search.engine import Engine, engine_of
from vsrn.search.layout import (
    JPEG_START,
    MODEL_FOLDER,
    RECORDS_FILE,
    REMEDY,
    IndexInfo,
    growing_path,
    lengths_are_wrong,
    open_model,
    open_vectors,
    read_info,
    read_piece,
    regions_size,
    unpack_regions,
)
from vsrn.search.records import PhotoRecord, SkippedRecord, State, View, Where

# A compaction may replace the files between reading the records and opening them, hardly ever twice in a row.
TRIES = 5
# Vectors that are checked at a time: 100 MB as float32 of 512 numbers.
ROWS_AT_ONCE = 50_000
EVERYWHERE = Where()

_Answer = TypeVar("_Answer")


def open_index(folder: Path | str, uri: str = "", device: str = "auto") -> Index:
    """Open an index. Sentences are then searched without torch; photos need it, to extract their regions.

    uri     where an index keeps its vectors in Milvus outside of its folder: that server or file again, since nothing
            is contacted because a folder says so
    device  where photos are extracted and captions written: `cpu`, `cuda`, `mps` or `auto`

    Raises `SearchError` where the folder is no index, is broken, or its model is not the one that made it, and
    `CheckpointError` where the model itself is broken.
    """
    folder = Path(folder)
    info = read_info(folder)
    return Index(folder, info, open_model(folder, info, device), uri)


@dataclass(frozen=True)
class Hit:
    """A photo that was found.

    id     its path below the folder that was indexed
    score  inner product of its embedding with the query's; a cosine for most models
    path   where it was when it was indexed
    """

    id: str
    score: float
    path: Path


@dataclass(frozen=True)
class _Snapshot:
    """The index as one commit left it."""

    state: State
    vectors: FloatArray
    engine: Engine


class Index:
    """Answers questions about the photos of an index folder; `open_index` makes it."""

    def __init__(self, folder: Path, info: IndexInfo, encoder: OnnxEncoder, uri: str = "") -> None:
        self.folder, self.info, self.encoder = folder, info, encoder
        self._uri = uri
        self._records = Records(self.folder / RECORDS_FILE)
        self._lock = threading.Lock()
        self._last: _Snapshot | None = None

    def __len__(self) -> int:
        """Photos that can be found."""
        return self._ask(lambda view: view.num_photos())

    @property
    def root(self) -> Path:
        """The folder of the photos."""
        return self._ask(_root)

    @property
    def model_folder(self) -> Path:
        """The exported encoders that the index was made by."""
        return self.folder / MODEL_FOLDER

    def search(self, caption: str, k: int = 10, where: Where = EVERYWHERE) -> list[Hit]:
        """The k photos that fit a sentence best, best first. Needs no torch."""
        return self.search_vector(self.encoder.encode_captions([caption])[0], k, where)

    def search_image(self, photo: Path | str, k: int = 10, where: Where = EVERYWHERE) -> list[Hit]:
        """The k photos most like one that need not be in the index. Raises `PhotoError` where it cannot be read."""
        return self.search_vector(self.encoder.encode_images([photo])[0], k, where)

    def search_like(self, photo_id: str, k: int = 10, where: Where = EVERYWHERE) -> list[Hit]:
        """The k photos most like one of the index, which is left out itself. Raises `SearchError` for an unknown id."""
        photo_id = self.photo(photo_id).id
        found = self.search_vector(self.vector(photo_id), k + 1, where)
        return [hit for hit in found if hit.id != photo_id][:k]

    def id_of(self, name: Path | str) -> str:
        """The id of a photo that is named by its id, or by a path such as searches print.

        Raises `UnknownPhotoError` where the index holds no such photo.
        """

        def find(view: View) -> str:
            photo = view.photo(str(name)) or view.photo(normal_name(str(name)))
            if photo is not None:
                return photo.id
            root = _root(view)
            # A path below the root as it is written, or as it is once links are followed.
            for path, above in ((Path(name), root), (Path(name).resolve(), root.resolve())):
                if path.absolute().is_relative_to(above):
                    found = view.ids_at_path(os.fsencode(path.absolute().relative_to(above)))
                    if found:
                        return found[0]
            raise self._unknown(view, str(name))

        return self._ask(find)

    def search_vector(self, vector: FloatArray, k: int = 10, where: Where = EVERYWHERE) -> list[Hit]:
        """The k photos nearest to a (D,) vector. Raises `SearchError` where its size is another, or k is below 1."""
        if k < 1:
            raise SearchError(f"k is {k}; ask for 1 photo or more.")
        if vector.shape != (self.info.joint_dim,):
            raise SearchError(f"a vector of shape {vector.shape} does not fit this index of {self.info.joint_dim}.")

        def search(view: View) -> list[Hit]:
            root, allowed = _root(view), view.rows(where) if where else None
            found = _nearest_photos(view, self._snapshot(view), vector, k, allowed)
            return [Hit(photo.id, score, root / os.fsdecode(photo.path)) for photo, score in found]

        return self._ask(search)

    def photo(self, photo_id: str) -> PhotoRecord:
        """What is known of a photo. Raises `UnknownPhotoError` for an unknown id."""
        return self._ask(lambda view: self._known(view, photo_id))

    def photos(self, photo_ids: Iterable[str]) -> dict[str, PhotoRecord]:
        """What is known of several photos, by id; those that the index does not hold are left out."""
        ids = list(photo_ids)

        def find(view: View) -> dict[str, PhotoRecord]:
            found = ((photo_id, view.photo(photo_id) or view.photo(normal_name(photo_id))) for photo_id in ids)
            return {photo_id: photo for photo_id, photo in found if photo is not None}

        return self._ask(find)

    def latest(self, k: int = 10) -> list[PhotoRecord]:
        """The k photos taken last, the latest first."""
        return self._ask(lambda view: view.latest(k))

    def path(self, photo_id: str) -> Path:
        """Where a photo was when it was indexed. Raises `UnknownPhotoError` for an unknown id."""
        return self._ask(lambda view: _root(view) / os.fsdecode(self._known(view, photo_id).path))

    def vector(self, photo_id: str) -> FloatArray:
        """(D,) float32 embedding of a photo. Raises `SearchError` for an unknown id."""

        def read(view: View) -> FloatArray:
            row = self._known(view, photo_id).row
            return np.asarray(self._snapshot(view).vectors[row], dtype=np.float32)

        return self._ask(read)

    def regions(self, photo_id: str) -> Regions:
        """The regions that a photo's embedding was made of.

        Raises `SearchError` for an unknown id, or where the index was made with --no-explain.
        """
        if not self.info.explain:
            raise SearchError(f"{self.folder} was made with --no-explain and keeps no regions; make it without.")

        def read(view: View) -> Regions:
            photo = self._known(view, photo_id)
            path = growing_path(self.folder, "regions", view.state().generation)
            if photo.regions_at is None:
                raise SearchError(f"{path} has no regions of '{photo.id}'; {REMEDY}")
            content = read_piece(path, photo.regions_at, regions_size(photo, self.info), photo.regions_crc)
            return unpack_regions(content, photo, self.info)

        return self._ask(read)

    def labels(self, photo_id: str) -> list[str] | None:
        """What the extractor took each region for, such as "brown dog"; None where the index keeps no names.

        Raises what `regions` raises.
        """
        return self.info.names.labels_of(self.regions(photo_id))

    def explain(self, photo_id: str, sentence: str, view: ExplainView = "sentence") -> Explanation:
        """Which regions of a photo earned its match with a sentence, or made its embedding (view "image").

        Reads the regions that the index keeps, so nothing is extracted and no torch is needed. Raises what `regions`
        raises, and for the view "image" `CheckpointError` where the index's model is from before encoders gave their
        reasoned regions.
        """
        regions = self.regions(photo_id)
        return explain_regions(self.encoder, regions, sentence, view, self.info.names.labels_of(regions))

    def thumbnail(self, photo_id: str) -> bytes:
        """A JPEG of at most 256 pixels a side. Raises `SearchError` for an unknown id."""

        def read(view: View) -> bytes:
            photo = self._known(view, photo_id)
            path = growing_path(self.folder, "thumbnails", view.state().generation)
            content = read_piece(path, photo.thumbnail_at, photo.thumbnail_size, photo.thumbnail_crc)
            if not content.startswith(JPEG_START):
                raise SearchError(f"{path} is damaged: the thumbnail of '{photo.id}' is no JPEG; {REMEDY}")
            return content

        return self._ask(read)

    def skipped(self) -> list[SkippedRecord]:
        """Files of the folder that could not be read, and why."""
        return self._ask(lambda view: view.skipped())

    def close(self) -> None:
        """Close the files."""
        self._records.close()
        with self._lock:
            if self._last is not None:
                self._last.engine.close()
            self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: Callable[[View], _Answer]) -> _Answer:
        """Answer from the records and the files that belong to them."""
        for _ in range(TRIES):
            try:
                with self._records.read() as view:
                    return question(view)
            except FileNotFoundError as error:
                missing = error.filename
        raise SearchError(f"{missing} is missing; {REMEDY}")

    def _snapshot(self, view: View) -> _Snapshot:
        """Vectors and engine as the view knows them."""
        state = view.state()
        with self._lock:
            last = self._last
            if last is None or last.state.version != state.version:
                vectors, dead = open_vectors(self.folder, self.info, state), view.dead_rows()
                same = last is not None and last.state.generation == state.generation
                self._check_vectors(view, vectors, dead, last.state.num_rows if last is not None and same else 0)
                engine = last.engine if last is not None else None
                engine = engine_of(self.info).open_engine(
                    self.folder, self.info, state, vectors, dead, engine, self._uri
                )
                last = self._last = _Snapshot(state, vectors, engine)
            return last

    def _check_vectors(self, view: View, vectors: FloatArray, dead: IntArray, first: int) -> None:
        """Raise `SearchError` where a vector from row `first` on that can be found is not as a model gives it."""
        normalised = self.encoder.config.model.image_norm
        for start in range(first, len(vectors), ROWS_AT_ONCE):
            wrong = start + np.flatnonzero(
                lengths_are_wrong(vectors[start : start + ROWS_AT_ONCE], normalised=normalised)
            )
            wrong = np.setdiff1d(wrong, dead)
            if len(wrong):
                path = growing_path(self.folder, "vectors", view.state().generation)
                photos = view.photos_at(wrong[:1].tolist())
                name = f", such as that of '{photos[wrong[0]].id}'" if photos else ""
                raise SearchError(
                    f"{path} is damaged: it holds {len(wrong):,} vectors that no model gives{name}; {REMEDY}"
                )

    def _known(self, view: View, photo_id: str) -> PhotoRecord:
        # Ids of older indexes are as the file system gave them.
        photo = view.photo(photo_id) or view.photo(normal_name(photo_id))
        if photo is None:
            raise self._unknown(view, photo_id)
        return photo

    def _unknown(self, view: View, name: str) -> UnknownPhotoError:
        return UnknownPhotoError(
            f"{self.folder} holds no photo '{printable(name)}'; ids are paths below {printable(_root(view))}."
        )


def _nearest_photos(
    view: View, snapshot: _Snapshot, vector: FloatArray, k: int, allowed: IntArray | None
) -> list[tuple[PhotoRecord, float]]:
    """The k best with their scores, of those rows that the records know.

    Raises `SearchError` where the vector of one of them is not what was written.
    """
    wanted = k
    while True:
        found = snapshot.engine.search(vector, wanted, allowed)
        records = view.photos_at(found.rows.tolist())
        # An engine may lag behind the records, which then know nothing of some of its rows.
        scored = zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        known = [(records[row], score) for row, score in scored if row in records]
        if len(known) >= k or len(found.rows) < wanted:
            for photo, _ in known[:k]:
                if photo.vector_crc not in (None, zlib.crc32(snapshot.vectors[photo.row].tobytes())):
                    raise SearchError(f"the vector of '{photo.id}' is not what was written; {REMEDY}")
            return known[:k]
        wanted *= 2


def _root(view: View) -> Path:
    return Path(os.fsdecode(view.state().root))
