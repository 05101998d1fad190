"""What an engine must offer: the nearest vectors to one. `faiss.py` and `milvus.py` offer it.

The index owns the vectors, on disk, a row a photo. An engine finds rows; it knows nothing of photos.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from vsrn.data.region_store import FloatArray, IntArray


class Found(NamedTuple):
    """The nearest rows.

    rows    (k,) or fewer
    scores  of each its inner product with the query, falling; of equals the lower row comes first
    """

    rows: IntArray
    scores: FloatArray


class Engine(Protocol):
    """Searches the rows that were there when it was opened. Threads may share it."""

    def search(self, query: FloatArray, k: int, allowed: IntArray | None = None) -> Found:
        """The k rows nearest to a (D,) query, among the `allowed` ones (rising), or among all.

        A row that died since may still be among them.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class Keeper(Protocol):
    """Keeps what an engine stores of its own in step with the index, for the one process that writes.

    What it holds besides the acknowledged rows harms nobody: a search drops what the records do not know.
    """

    def begin(self, generation: int, vectors: FloatArray, dead: IntArray) -> None:
        """The index stands so: hold these (num_rows, D) rows but for the dead ones, and none behind them."""

    def add(self, first_row: int, vectors: FloatArray) -> None:
        """Hold (B, D) more rows. They are acknowledged after this."""

    def remove(self, rows: IntArray) -> None:
        """Let these rows go. Their photos are gone before this."""

    def finish(self, generation: int, vectors: FloatArray) -> None:
        """All is written; the last word before searches."""

    def forget(self, generation: int) -> None:
        """This generation is replaced."""

    def close(self) -> None:
        """Let go."""


def nearest(rows: IntArray, scores: FloatArray, k: int) -> Found:
    """The k best of some rows, in order."""
    order = np.lexsort((rows, -scores))[:k]
    return Found(rows[order], scores[order])
