"""An open index of photos: sentences, photos or vectors in, hits out.

    with Index("idx/") as index:
        index.search("two dogs play on a beach", k=5)     # [Hit(id, score, path), ...]

Threads may share an index, and another process may add to it meanwhile: a call sees the index as one commit left it.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from vsrn.data.regions import Regions
from vsrn.data.stand_ins import ReadWords
from vsrn.encoders.explain import ExplainView, Explanation, explain_regions
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import PhotoError, SearchError, UnknownPhotoError
from vsrn.files import Closing, printable
from vsrn.metrics import FloatArray, IntArray
from vsrn.search import layout
from vsrn.search.alike import groups_of, small_picture
from vsrn.search.database import Records
from vsrn.search.engine import Engine, Keeper, open_keeper
from vsrn.search.folders import resolved
from vsrn.search.layout import GrowingFile, IndexInfo
from vsrn.search.records import REMEDY, PhotoRecord, SkippedRecord, State, View
from vsrn.search.where import EVERYWHERE, Where

# A compaction may replace the files between reading the records and opening them, hardly ever twice in a row.
TRIES = 5
# Vectors that are checked at a time: 100 MB as float32 of 512 numbers.
ROWS_AT_ONCE = 50_000
# Of a sentence in the sum with a photo. On Flickr8K, 21.3 % of the best ten hits then show both, as with 0.7, which
# keeps less of the photo; 3.8 % by the photo alone, 18.4 % by the words alone (experiments/alike.py).
WORDS_WEIGHT = 0.6
# Small pictures that are kept for `Index.fold`, 1 KB each.
MOST_SMALL = 2_000

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Hit:
    """A photo that was found.

    id     its path below its folder, after the folder's label where the index has several
    score  inner product of its embedding with the query's; a cosine for most models
    path   where it was when it was indexed
    photo  what else the index knew of it when it was found
    fit    how likely it is, from 0 to 1, that it fits the sentence; None where the search was by a photo or a vector,
           or where nobody measured it for the index's model
    alike  hits that `Index.fold` has put behind this one
    """

    id: str
    score: float
    path: Path
    photo: PhotoRecord = field(repr=False, compare=False)
    fit: float | None = field(default=None, compare=False)
    alike: tuple[Hit, ...] = field(default=(), compare=False, repr=False)

    def fits(self, least: float) -> bool:
        """Whether its `fit`, or its score where it has none, is at least this."""
        return (self.score if self.fit is None else self.fit) >= least


@dataclass(frozen=True)
class _Snapshot:
    """The index as one commit left it."""

    state: State
    vectors: FloatArray
    engine: Engine


class Index(Closing):
    """Answers questions about the photos of an index folder."""

    def __init__(self, folder: Path | str, uri: str = "", device: str = "auto") -> None:
        """Open an index. Sentences are then searched without torch; photos need it, to extract their regions.

        uri     where an index keeps its vectors in Milvus outside of its folder: that server or file again, since
                nothing is contacted because a folder says so
        device  where photos are extracted and captions written: `cpu`, `cuda`, `mps` or `auto`

        Raises `SearchError` where the folder is no index, is broken, or its model is not the one that made it, and
        `CheckpointError` where the model itself is broken.
        """
        self.folder, self._uri = Path(folder), uri
        self.info: IndexInfo = IndexInfo.read(self.folder)
        self.encoder: OnnxEncoder = layout.open_model(self.folder, self.info, device)
        self._records = Records(self.folder)
        self._lock = threading.Lock()
        self._keeper: Keeper | None = None
        self._last: _Snapshot | None = None
        self._small: dict[str, FloatArray] = {}

    def __len__(self) -> int:
        """Photos that can be found."""
        return self._ask(lambda view: view.num_photos())

    def search(self, caption: str, k: int = 10, where: Where = EVERYWHERE, least: float | None = None) -> list[Hit]:
        """The k photos that fit a sentence best, best first; none where it names nothing that the model knows.

        least  only photos whose `fit` is at least this, or whose score is where the index's model has no `fit`
        """
        vector = self.encoder.encode_captions([caption])[0]
        return self.search_sentence(vector, self.encoder.read_words(caption), k, where, least)

    def search_sentence(
        self, vector: FloatArray, words: ReadWords, k: int, where: Where = EVERYWHERE, least: float | None = None
    ) -> list[Hit]:
        """As `search`, by the (D,) embedding of a sentence and what the model makes of its words."""
        hits, fit = self.search_vector(vector, k, where), self.encoder.fit
        if not words.asks:
            return []
        if fit is not None:
            chances = fit.chances(np.array([hit.score for hit in hits]), words.num_naming)
            hits = [replace(hit, fit=float(chance)) for hit, chance in zip(hits, chances, strict=True)]
        return [hit for hit in hits if least is None or hit.fits(least)]

    def search_image(self, photo: Path | str, k: int = 10, where: Where = EVERYWHERE, sentence: str = "") -> list[Hit]:
        """The k photos most like one that need not be in the index. Raises `PhotoError` where it cannot be read.

        sentence  what they should show besides, such as "in snow"; none are given where it names nothing that is known
        """
        return self._search_photo(self.encoder.encode_images([photo])[0], sentence, k, where)

    def search_like(self, photo_id: str, k: int = 10, where: Where = EVERYWHERE, sentence: str = "") -> list[Hit]:
        """The k photos most like another of the index, by `sentence` too as in `search_image`.

        Raises `UnknownPhotoError` for an unknown id.
        """
        photo_id = self.photo(photo_id).id
        found = self._search_photo(self.vector(photo_id), sentence, k + 1, where)
        return [hit for hit in found if hit.id != photo_id][:k]

    def fold(self, hits: Sequence[Hit]) -> list[Hit]:
        """The hits without those that look like an earlier one, which has them in its `alike`."""
        groups = self.alike([hit.photo for hit in hits])
        return [replace(hits[first], alike=tuple(hits[place] for place in rest)) for first, *rest in groups]

    def alike(self, photos: Sequence[PhotoRecord]) -> list[list[int]]:
        """Places of photos in groups: copies, and one picture saved again, resized or slightly cropped (`alike.py`)."""

        def read(view: View) -> list[list[int]]:
            vectors = np.zeros((len(photos), self.info.joint_dim), dtype=np.float32)
            kept = self._snapshot(view).vectors
            for place, photo in enumerate(photos):
                now = view.photo(photo.id)  # a compaction may have given it another row
                if now is not None:
                    vectors[place] = kept[now.row]
            return groups_of(photos, vectors, lambda photo: self._small_picture(view, photo))

        return self._ask(read)

    def id_of(self, name: Path | str) -> str:
        """The id of a photo that is named by its id, or by a path as searches print; raises `UnknownPhotoError`."""

        def find(view: View) -> str:
            photo = view.photo_named(str(name))
            if photo is not None:
                return photo.id
            roots = view.roots()
            for root, path in roots.places(name):
                found = next((one for one in view.ids_at_path(os.fsencode(path)) if roots.of(one) == root), None)
                if found is not None:
                    return found
            raise self._unknown(view, str(name))

        return self._ask(find)

    def search_vector(self, vector: FloatArray, k: int = 10, where: Where = EVERYWHERE) -> list[Hit]:
        """The k photos nearest to a (D,) vector.

        Raises `SearchError` where its size is another, or k is below 1, and `UnknownFolderError` for an unknown folder.
        """
        if k < 1:
            raise SearchError(f"k is {k}; ask for 1 photo or more.")
        if vector.shape != (self.info.joint_dim,):
            raise SearchError(f"a vector of shape {vector.shape} does not fit this index of {self.info.joint_dim}.")
        roots, found = self._ask(lambda view: (view.roots(), self._nearest(view, vector, k, resolved(view, where))))
        return [Hit(photo.id, score, roots.place(photo.id, photo.path), photo) for photo, score in found]

    def photo(self, photo_id: str) -> PhotoRecord:
        """What is known of a photo. Raises `UnknownPhotoError` for an unknown id."""
        return self._ask(lambda view: self._known(view, photo_id))

    def latest(self, k: int = 10, where: Where = EVERYWHERE, after: tuple[str, int] | None = None) -> list[PhotoRecord]:
        """The k photos taken last of those that pass a filter, the latest first.

        after  `taken` and `row` of a photo: those that follow it, so that all can be read in pieces

        Raises `UnknownFolderError`.
        """
        return self._ask(lambda view: view.latest(k, resolved(view, where), after))

    def count(self, where: Where = EVERYWHERE) -> int:
        """How many photos pass a filter. Raises `UnknownFolderError`."""
        return self._ask(lambda view: view.num_photos(resolved(view, where)))

    def folders(self) -> dict[str, int]:
        """Every folder below the indexed one, sorted, and how many photos are in it and below."""
        return self._ask(lambda view: view.folders())

    def path(self, photo_id: str) -> Path:
        """Where a photo was when it was indexed. Raises `UnknownPhotoError` for an unknown id."""
        roots, photo = self._ask(lambda view: (view.roots(), self._known(view, photo_id)))
        return roots.place(photo.id, photo.path)

    def vector(self, photo_id: str) -> FloatArray:
        """(D,) float32 embedding of a photo. Raises `SearchError` for an unknown id, or where it is damaged."""
        _, content = self._ask(lambda view: self._piece(view, "vectors", photo_id))
        return np.frombuffer(content, dtype="<f2").astype(np.float32)

    def regions(self, photo_id: str) -> Regions:
        """The regions that a photo's embedding was made of.

        Raises `SearchError` for an unknown id, or where the index was made with --no-explain.
        """
        if not self.info.explain:
            raise SearchError(f"{self.folder} was made with --no-explain and keeps no regions; make it without.")
        photo, content = self._ask(lambda view: self._piece(view, "regions", photo_id))
        if photo.regions_at is None:
            raise SearchError(f"{self.folder} has no regions of '{photo.id}'; {REMEDY}")
        return layout.unpack_regions(content, photo, self.info)

    def labels(self, photo_id: str) -> list[str] | None:
        """What each of its `regions` is called, such as "brown dog"; None where the index keeps no names."""
        return self.info.names.labels_of(self.regions(photo_id))

    def explain(self, photo_id: str, sentence: str, view: ExplainView | None = None) -> Explanation:
        """Where in a photo its match with a sentence, and each word of it, lies; views as in `Encoder.explain`.

        Raises what `regions` raises, and for another view than "sentence" `CheckpointError` where the index's model is
        from before encoders gave their reasoned regions.
        """
        regions = self.regions(photo_id)
        return explain_regions(self.encoder, regions, sentence, view, self.info.names.labels_of(regions))

    def thumbnail(self, photo_id: str) -> bytes:
        """A small JPEG, of the size that index.json says. Raises `SearchError` for an unknown id."""
        return self._ask(lambda view: self._piece(view, "thumbnails", photo_id)[1])

    def skipped(self) -> list[SkippedRecord]:
        """Files of the folder that could not be read, and why."""
        return self._ask(lambda view: view.skipped())

    def last_run(self) -> datetime | None:
        """When the last run of `vsrn index` came to its end, in UTC; None where none is known."""
        return self._ask(lambda view: view.settings().last_run)

    def close(self) -> None:
        """Close the files."""
        self._records.close()
        with self._lock:
            if self._keeper is not None:
                self._keeper.close()
            self._keeper = self._last = None

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
                vectors, dead = layout.open_vectors(self.folder, self.info, state), view.dead_rows()
                same = last is not None and last.state.generation == state.generation
                self._check_vectors(view, vectors, dead, last.state.num_rows if last is not None and same else 0)
                self._keeper = self._keeper or open_keeper(self.folder, self.info, self._uri)
                engine = self._keeper.open(state.generation, vectors, dead)
                last = self._last = _Snapshot(state, vectors, engine)
            return last

    def _check_vectors(self, view: View, vectors: FloatArray, dead: IntArray, first: int) -> None:
        """Raise `SearchError` where a vector from row `first` on that can be found is not as a model gives it."""
        normalised = self.encoder.config.model.image_norm
        for start in range(first, len(vectors), ROWS_AT_ONCE):
            wrong = start + np.flatnonzero(layout.is_wrong(vectors[start : start + ROWS_AT_ONCE], normalised))
            wrong = np.setdiff1d(wrong, dead)
            if len(wrong):
                path = layout.growing_path(self.folder, "vectors", view.state().generation)
                photos = view.photos_at(wrong[:1].tolist())
                name = f", such as that of '{photos[wrong[0]].id}'" if photos else ""
                raise SearchError(
                    f"{path} is damaged: it holds {len(wrong):,} vectors that no model gives{name}; {REMEDY}"
                )

    def _nearest(self, view: View, vector: FloatArray, k: int, where: Where) -> list[tuple[PhotoRecord, float]]:
        """The k photos nearest to a vector of those that pass a resolved filter, and their scores."""
        snapshot, wanted = self._snapshot(view), k
        allowed = view.rows(where) if where else None
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

    def _search_photo(self, vector: FloatArray, sentence: str, k: int, where: Where) -> list[Hit]:
        if sentence.strip():
            if not self.encoder.read_words(sentence).asks:
                return []
            vector = mixed(vector, self.encoder.encode_captions([sentence])[0])
        return self.search_vector(vector, k, where)

    def _small_picture(self, view: View, photo: PhotoRecord) -> FloatArray:
        """The small picture of a photo's thumbnail; zeros, which are like nothing, where that cannot be read."""
        if photo.sha256 not in self._small:
            try:
                small = small_picture(self._piece(view, "thumbnails", photo.id)[1])
            except (SearchError, PhotoError):
                return np.zeros(1, dtype=np.float32)
            if len(self._small) >= MOST_SMALL:
                self._small.clear()
            self._small[photo.sha256] = small
        return self._small[photo.sha256]

    def _piece(self, view: View, kind: str, photo_id: str) -> tuple[PhotoRecord, bytes]:
        photo = self._known(view, photo_id)
        with GrowingFile(self.folder, kind, self.info, view.state()) as file:
            return photo, file.piece(photo)

    def _known(self, view: View, photo_id: str) -> PhotoRecord:
        photo = view.photo_named(photo_id)
        if photo is None:
            raise self._unknown(view, photo_id)
        return photo

    def _unknown(self, view: View, name: str) -> UnknownPhotoError:
        labels = {root: f" after '{printable(root.label)}/'" if root.label else "" for root in view.roots()}
        below = " and ".join(f"below {printable(root.path)}{label}" for root, label in labels.items())
        return UnknownPhotoError(f"{self.folder} holds no photo '{printable(name)}'; ids are paths {below}.")


def mixed(photo: FloatArray, sentence: FloatArray) -> FloatArray:
    """A (D,) vector of length 1 for photos that are like one and fit a sentence, of the (D,) vectors of both."""
    one, other = (vector / np.linalg.norm(vector) for vector in (photo, sentence))
    both = (1 - WORDS_WEIGHT) * one + WORDS_WEIGHT * other
    return np.asarray(both / np.linalg.norm(both), dtype=np.float32)
