"""What an engine must offer: the nearest vectors to one. `faiss.py` and `milvus.py`, named in index.json, offer it.

The index owns the vectors, on disk, a row a photo. An engine finds rows; it knows nothing of photos.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from vsrn.files import Closing
from vsrn.metrics import FloatArray, IntArray
from vsrn.search.layout import IndexInfo


class Found(NamedTuple):
    """The k nearest rows, or fewer, and their inner products with the query, falling; of equals the lower row first."""

    rows: IntArray
    scores: FloatArray


class Engine(Protocol):
    """Searches the rows that an index had when the engine was opened. Threads may share it."""

    def search(self, query: FloatArray, k: int, allowed: IntArray | None = None) -> Found:
        """The k rows nearest to a (D,) query.

        allowed  the rows to search, rising; None for all

        A row whose photo was removed since the engine was opened may be among them.
        """


class Keeper(Closing):
    """Opens engines over the vectors of an index, and keeps the engine's own copy of them in step with it.

    Only the one process that writes calls more than `open` and `close`. The copy may hold more rows than the index
    acknowledges: a search drops rows that the records do not know. What a kind of engine does not need does nothing.
    """

    def open(self, generation: int, vectors: FloatArray, dead: IntArray) -> Engine:
        """An engine over those of the (num_rows, D) vectors of a generation whose row is not in `dead`.

        Raises `SearchError` where files or a server of the engine's own fail.
        """
        raise NotImplementedError

    def begin(self, generation: int, vectors: FloatArray, dead: IntArray) -> None:
        """Have the copy of this generation hold exactly what `open` searches; called first, and at a compaction."""

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


def open_keeper(folder: Path, info: IndexInfo, uri: str = "") -> Keeper:
    """The keeper of an index, which loads the library of its engine alone; `uri` as in `Index`.

    Raises `SearchError` where the index has its vectors at another place than `uri`.
    """
    keeper: Keeper = import_module(f"vsrn.search.{info.engine}").open_keeper(folder, info, uri)
    return keeper


def nearest(rows: IntArray, scores: FloatArray, k: int) -> Found:
    """The k best of some rows, in order."""
    order = np.lexsort((rows, -scores))[:k]
    return Found(rows[order], scores[order])
