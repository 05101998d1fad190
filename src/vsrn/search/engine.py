"""What an engine must offer: the nearest vectors to one. `faiss.py` and `milvus.py`, named in index.json, offer it.

The index owns the vectors, on disk, a row a photo. An engine finds rows; it knows nothing of photos.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np

from vsrn.metrics import FloatArray, IntArray
from vsrn.search.layout import IndexInfo
from vsrn.search.records import State


class Found(NamedTuple):
    """The nearest rows.

    rows    (k,) or fewer
    scores  of each its inner product with the query, falling; of equals the lower row comes first
    """

    rows: IntArray
    scores: FloatArray


class Engine(Protocol):
    """Searches the rows that an index had when the engine was opened. Threads may share it."""

    def search(self, query: FloatArray, k: int, allowed: IntArray | None = None) -> Found:
        """The k rows nearest to a (D,) query.

        allowed  the rows to search, rising; None for all

        A row whose photo was removed since the engine was opened may be among them.
        """

    def close(self) -> None:
        """Close connections and files."""


class Keeper(Protocol):
    """Keeps the engine's own copy of the vectors in step with the index, for the one process that writes.

    The copy may hold more rows than the index acknowledges: a search drops rows that the records do not know.
    """

    def begin(self, generation: int, vectors: FloatArray, dead: IntArray) -> None:
        """Called once when a writer opens, and once for each compaction.

        Afterwards the copy of this generation holds exactly those of the (num_rows, D) vectors whose row is not in
        `dead`, and no row at or above num_rows.
        """

    def add(self, first_row: int, vectors: FloatArray) -> None:
        """Copy (B, D) new rows, which begin at `first_row`. Called before the index acknowledges them."""

    def remove(self, rows: IntArray) -> None:
        """Remove rows. Called after the commit that removed their photos."""

    def finish(self, generation: int, vectors: FloatArray) -> None:
        """Called once after the last batch: build what searches need, such as a graph."""

    def forget(self, generation: int) -> None:
        """Delete the copy of a generation that a compaction has replaced."""

    def close(self) -> None:
        """Close connections and files."""


class EngineModule(Protocol):
    """A module that offers an engine."""

    def open_engine(
        self,
        folder: Path,
        info: IndexInfo,
        state: State,
        vectors: FloatArray,
        dead: IntArray,
        last: Engine | None = None,
        uri: str = "",
    ) -> Engine:
        """The engine over an index as it stands; what still holds is taken over from the `last` one.

        uri  the server or file outside of the index that a person named; see `open_index`

        Raises `SearchError` where its own files or server fail.
        """

    def open_keeper(self, folder: Path, info: IndexInfo, uri: str = "") -> Keeper:
        """What keeps the engine in step while the index is written; `uri` as in `open_engine`."""


def engine_of(info: IndexInfo) -> EngineModule:
    """The engine of an index. Its library is loaded here, only where an index has it."""
    return cast("EngineModule", import_module(f"vsrn.search.{info.engine}"))


def nearest(rows: IntArray, scores: FloatArray, k: int) -> Found:
    """The k best of some rows, in order."""
    order = np.lexsort((rows, -scores))[:k]
    return Found(rows[order], scores[order])
