"""The engine of many machines: vectors are also kept by Milvus, as a server or in a Milvus Lite file.

A collection is a copy of the index's vectors, one a generation. Milvus Lite scans exactly, for one process at a time; a
server chooses its own kind of index.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vsrn.errors import ConfigError, SearchError, one_line
from vsrn.files import printable
from vsrn.metrics import FloatArray, IntArray
from vsrn.search.engine import Found, Keeper, nearest
from vsrn.search.layout import MILVUS_FILE, IndexInfo

# As many as a server gives in one answer.
MOST_HITS = 16_384
ROWS_AT_ONCE = 1_000
SECONDS_TO_CONNECT = 10.0


class MilvusEngine:
    """Searches a collection."""

    def __init__(self, client: Any, uri: str, collection: str, num_rows: int) -> None:
        self._client, self.uri, self.collection, self.num_rows = client, uri, collection, num_rows

    def search(self, query: FloatArray, k: int, allowed: IntArray | None = None) -> Found:
        """As `Engine.search`; no more than 16,384 hits, which is a server's own limit."""
        k = min(k, MOST_HITS, self.num_rows)
        if k < 1 or (allowed is not None and not len(allowed)):
            return Found(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        terms = f"row < {self.num_rows}" if allowed is None else f"row in {allowed.tolist()}"
        with _told(self.uri):
            hits = self._client.search(
                self.collection,
                [np.asarray(query, dtype=np.float32)],
                limit=k,
                filter=terms,
                output_fields=["row"],
                consistency_level="Strong",
            )[0]
        rows = np.array([hit["row"] for hit in hits], dtype=np.int64)
        return nearest(rows, np.array([hit["distance"] for hit in hits], dtype=np.float32), k)


class MilvusKeeper(Keeper):
    """Keeps the collections of one index. Each method raises `SearchError` where Milvus fails."""

    def __init__(self, uri: str, name: str, dim: int) -> None:
        self.uri, self.name, self.dim = uri, name, dim
        self._collection = ""

    @cached_property
    def _client(self) -> Any:
        with _told(self.uri):
            from pymilvus import MilvusClient  # noqa: PLC0415 - an extra

            # What goes wrong is raised, and said again by us in one sentence.
            for logger in ("pymilvus", "milvus_lite"):
                logging.getLogger(logger).setLevel(logging.CRITICAL)
            # gRPC would reach even Lite, a process on 127.0.0.1, through a user's proxy. It reads `no_grpc_proxy`, in
            # lower case alone, in place of `no_proxy`, so what the user has excluded is kept.
            excluded = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""  # noqa: SIM112
            if "://" not in self.uri and "127.0.0.1" not in excluded.split(","):
                os.environ["no_grpc_proxy"] = ",".join(filter(None, [excluded, "127.0.0.1"]))  # noqa: SIM112
            return MilvusClient(uri=self.uri, timeout=SECONDS_TO_CONNECT)

    def open(self, generation: int, vectors: FloatArray, dead: IntArray) -> MilvusEngine:  # noqa: ARG002
        """As `Keeper.open`; dead rows are no more in the collection."""
        collection = _collection(self.name, generation)
        with _told(self.uri):
            if not self._client.has_collection(collection):
                self.close()  # a Lite file is for one process at a time, and another has to fill it
                raise SearchError(f"{self.uri} does not hold this index; run `vsrn index` again to fill it.")
            self._client.load_collection(collection)
        return MilvusEngine(self._client, self.uri, collection, len(vectors))

    def begin(self, generation: int, vectors: FloatArray, dead: IntArray) -> None:
        """Make the collection where it is missing, and fill it where it falls short."""
        self._collection = _collection(self.name, generation)
        with _told(self.uri):
            if not self._client.has_collection(self._collection):
                self._make()
            self._client.load_collection(self._collection)
            self._client.delete(self._collection, filter=f"row >= {len(vectors)}")
            self.remove(dead)
            asked = {"output_fields": ["count(*)"], "consistency_level": "Strong"}
            counted = self._client.query(self._collection, filter="", **asked)
        if int(counted[0]["count(*)"]) != len(vectors) - len(dead):
            self._put(np.setdiff1d(np.arange(len(vectors)), dead), vectors)

    def add(self, first_row: int, vectors: FloatArray) -> None:
        """Copy new rows, before the index acknowledges them."""
        self._put(first_row + np.arange(len(vectors)), vectors, first_row)

    def remove(self, rows: IntArray) -> None:
        """Delete rows whose photos are gone."""
        with _told(self.uri):
            for first in range(0, len(rows), MOST_HITS):
                self._client.delete(self._collection, ids=rows[first : first + MOST_HITS].tolist())

    def forget(self, generation: int) -> None:
        """Drop the collection of a generation."""
        with _told(self.uri):
            self._client.drop_collection(_collection(self.name, generation))

    def close(self) -> None:
        """Close the connection, and a Lite file; what is asked next connects again."""
        if "_client" in vars(self):
            self._client.close()
            del self._client

    def _make(self) -> None:
        from pymilvus import DataType, MilvusClient  # noqa: PLC0415 - an extra

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dim)
        settings = MilvusClient.prepare_index_params()
        kind = "AUTOINDEX" if "://" in self.uri else "FLAT"
        settings.add_index("vector", index_type=kind, metric_type="IP")
        self._client.create_collection(self._collection, schema=schema, index_params=settings)

    def _put(self, rows: IntArray, vectors: FloatArray, first_row: int = 0) -> None:
        """Copy some rows, of vectors that begin at `first_row`."""
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            wide = np.asarray(vectors[some - first_row], dtype=np.float32)
            content = [{"row": row, "vector": vector} for row, vector in zip(some.tolist(), wide, strict=True)]
            with _told(self.uri):
                self._client.upsert(self._collection, content)


def open_keeper(folder: Path, info: IndexInfo, uri: str) -> MilvusKeeper:
    """As `vsrn.search.engine.open_keeper`. A stranger's index may name a place that would be sent every query."""
    if info.uri and uri != info.uri:
        raise SearchError(
            f"{folder} keeps its vectors in Milvus at {printable(info.uri)}, and nothing is contacted because a folder"
            f" says so; if that place is yours, add --uri {printable(info.uri)}."
        )
    lite = folder.absolute() / MILVUS_FILE
    if not info.uri and lite.is_symlink():
        raise SearchError(f"{lite} is a link, which `vsrn index` never makes; do not use this index.")
    return MilvusKeeper(info.uri or str(lite), info.name, info.joint_dim)


def _collection(name: str, generation: int) -> str:
    return f"vsrn_{name}_{generation}"


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Milvus's errors, in our words."""
    try:
        from pymilvus.exceptions import MilvusException  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the Milvus engine needs the package pymilvus; run `pip install '.[milvus]'` in the checkout."
        ) from error
    try:
        yield
    except MilvusException as error:
        said = one_line(error.message)
        raise SearchError(
            f"Milvus at {uri} failed ({said}); see that it is there, and that no other process uses a Lite file."
        ) from error
