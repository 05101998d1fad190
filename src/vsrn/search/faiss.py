"""The embedded engine: an exact scan in half precision, and above 200,000 rows an HNSW graph.

Dead rows stay in the graph and are passed over, until compaction. Where a filter lets little through, which a graph is
slow to find, and for rows that came after the graph was built, the scan is used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from vsrn.errors import SearchError
from vsrn.files import open_plain, replacing
from vsrn.metrics import FloatArray, IntArray
from vsrn.search.engine import Found, Keeper, nearest
from vsrn.search.layout import IndexInfo, not_ours

# From here on a scan takes tens of milliseconds.
GRAPH_FROM = 200_000
# A graph that covers less than this share of the rows is built again.
LEAST_COVERED = 0.9
# A filter that lets less through than this is answered by a scan.
LEAST_ALLOWED = 0.25
# Rows behind the base are scanned too; where there are more of them than of it, a new base is read.
MOST_GROWTH = 2
# More hits than this are found by a scan.
MOST_FROM_GRAPH = 1_000
LINKS, EFFORT_TO_BUILD, EFFORT_TO_SEARCH = 32, 64, 384
ROWS_AT_ONCE = 50_000


class Base:
    """The first rows of one generation, which never change: an exact scan, and the graph where there is one."""

    def __init__(self, generation: int, vectors: FloatArray, graph: Path | None) -> None:
        self.generation, self.path = generation, graph
        self.num_rows = len(vectors) if graph is None else _rows_of(graph)
        self.scan = _scan_of(vectors[: self.num_rows])
        self.graph = None if graph is None else _open_graph(graph, self.scan)

    def serves(self, generation: int, num_rows: int, graph: Path | None) -> bool:
        """Whether an index that stands so is these rows and not many more."""
        same = (self.generation, self.path) == (generation, graph)
        return same and (graph is not None or num_rows <= MOST_GROWTH * self.num_rows)


class FaissEngine:
    """Searches the vectors of an index in this process."""

    def __init__(self, base: Base, vectors: FloatArray, dead: IntArray) -> None:
        """Search all of the (num_rows, D) float16 vectors, of which `base` has the first, but rows in `dead`."""
        self.base, self.num_rows = base, len(vectors)
        self._tail = _scan_of(vectors[base.num_rows :])
        self._alive = np.ones(self.num_rows, dtype=bool)
        self._alive[dead] = False
        self._all_alive = not len(dead)

    def search(self, query: FloatArray, k: int, allowed: IntArray | None = None) -> Found:
        """As `Engine.search`; dead rows are never found."""
        wanted = None if self._all_alive and allowed is None else self._alive
        if allowed is not None:
            wanted = np.zeros(self.num_rows, dtype=bool)
            wanted[allowed] = self._alive[allowed]
        scan = k > MOST_FROM_GRAPH or (allowed is not None and len(allowed) < LEAST_ALLOWED * self.num_rows)
        query = np.ascontiguousarray(query, dtype=np.float32)[None]
        end = self.base.num_rows
        before, behind = (None, None) if wanted is None else (wanted[:end], wanted[end:])
        if self.base.graph is None or scan:
            rows, scores = _run(self.base.scan, query, k, before)
        else:
            rows, scores = _run(self.base.graph, query, k, before, effort=max(EFFORT_TO_SEARCH, 2 * k))
        more_rows, more_scores = _run(self._tail, query, k, behind)
        return nearest(np.concatenate([rows, more_rows + end]), np.concatenate([scores, more_scores]), k)


def open_keeper(folder: Path, _info: IndexInfo, _uri: str) -> FaissKeeper:
    """As `vsrn.search.engine.open_keeper`."""
    return FaissKeeper(folder)


class FaissKeeper(Keeper):
    """Builds the graph where an index has grown large. The vectors themselves are the index's own file."""

    def __init__(self, folder: Path, graph_from: int = GRAPH_FROM) -> None:
        self.folder, self.graph_from = folder, graph_from
        self._base: Base | None = None

    def open(self, generation: int, vectors: FloatArray, dead: IntArray) -> FaissEngine:
        """As `Keeper.open`; the base of the last engine is taken over while it serves."""
        graph = find_graph(self.folder, generation, len(vectors))
        if self._base is None or not self._base.serves(generation, len(vectors), graph):
            self._base = Base(generation, vectors, graph)
        return FaissEngine(self._base, vectors, dead)

    def finish(self, generation: int, vectors: FloatArray) -> None:
        """Build the graph again where it covers too few of the rows."""
        if len(vectors) < self.graph_from:
            return
        old = find_graph(self.folder, generation, len(vectors))
        if old is None or _rows_of(old) < LEAST_COVERED * len(vectors):
            build_graph(vectors, self.folder / f"graph-{generation}-{len(vectors)}.faiss")
            if old is not None:
                old.unlink()


def find_graph(folder: Path, generation: int, num_rows: int) -> Path | None:
    """The graph over the most of the first `num_rows` rows, if there is one."""
    graphs = [graph for graph in folder.glob(f"graph-{generation}-*.faiss") if _rows_of(graph) <= num_rows]
    return max(graphs, key=_rows_of, default=None)


def build_graph(vectors: FloatArray, path: Path) -> None:
    """Link (n, D) float16 vectors and write the links alone, whole or not at all."""
    dim = vectors.shape[1]
    graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EFFORT_TO_BUILD
    graph.train(np.asarray(vectors[:1], dtype=np.float32))
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        graph.add(np.asarray(vectors[first : first + ROWS_AT_ONCE], dtype=np.float32))
    with replacing(path) as temporary:
        faiss.write_index(graph, str(temporary), faiss.IO_FLAG_SKIP_STORAGE)


def _rows_of(graph: Path) -> int:
    number = graph.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _open_graph(path: Path, storage: Any) -> Any:
    """Links, over vectors that are in memory once. Raises `SearchError` where the file is not one of this index."""
    try:
        os.close(open_plain(path))
        graph = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE)
    except OSError as error:
        raise not_ours(path, error) from error
    except RuntimeError as error:
        raise SearchError(f"{path} cannot be read; delete it, and `vsrn index` builds it again.") from error
    if not isinstance(graph, faiss.IndexHNSWSQ) or (graph.d, graph.ntotal) != (storage.d, _rows_of(path)):
        raise SearchError(f"{path} is not the graph of this index; delete it, and `vsrn index` builds it again.")
    graph.storage, graph.own_fields = storage, False
    return graph


def _scan_of(vectors: FloatArray) -> Any:
    """An exact index over float16 vectors: their bytes are its codes."""
    scan = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    if len(vectors):
        scan.add_sa_codes(np.ascontiguousarray(vectors, dtype="<f2").view(np.uint8).reshape(len(vectors), -1))
    return scan


def _run(
    index: Any, query: FloatArray, k: int, wanted: npt.NDArray[np.bool_] | None, effort: int | None = None
) -> tuple[IntArray, FloatArray]:
    """Rows and scores of the best k, fewer where there are fewer.

    wanted  mask over the rows, or None for all
    effort  how many candidates a graph keeps; None for a scan
    """
    k = min(k, index.ntotal)
    if k < 1:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    settings = faiss.SearchParameters() if effort is None else faiss.SearchParametersHNSW(efSearch=effort)
    if wanted is not None:
        # faiss keeps a pointer into these bits, not the bits.
        bits = np.packbits(wanted, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        settings.sel = selector
    scores, rows = index.search(query, k, params=settings)
    there = rows[0] >= 0
    return rows[0][there], scores[0][there]
