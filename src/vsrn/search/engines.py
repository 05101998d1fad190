"""Which engine an index has, and how to open it."""

from __future__ import annotations

from pathlib import Path

from vsrn.regions.store import FloatArray, IntArray
from vsrn.search.engine import Engine, Keeper
from vsrn.search.layout import MILVUS_FILE, IndexInfo
from vsrn.search.records import State


def open_engine(
    folder: Path, info: IndexInfo, state: State, vectors: FloatArray, dead: IntArray, last: Engine | None = None
) -> Engine:
    """The engine over an index as it stands; what still holds is taken over from the `last` one.

    Raises `SearchError` where its own files or server fail.
    """
    # Each engine's library is loaded only where an index has it.
    if info.engine == "milvus":
        from vsrn.search.milvus import MilvusEngine  # noqa: PLC0415

        connected = last if isinstance(last, MilvusEngine) else None
        return MilvusEngine(_uri(folder, info), info.name, state.generation, state.num_rows, connected)
    from vsrn.search.faiss import Base, FaissEngine, find_graph  # noqa: PLC0415

    graph = find_graph(folder, state.generation, state.num_rows)
    if isinstance(last, FaissEngine) and last.base.serves(state.generation, state.num_rows, graph):
        return FaissEngine(last.base, vectors, dead)
    return FaissEngine(Base(state.generation, vectors, graph), vectors, dead)


def open_keeper(folder: Path, info: IndexInfo) -> Keeper:
    """What keeps the engine in step while the index is written."""
    if info.engine == "milvus":
        from vsrn.search.milvus import MilvusKeeper  # noqa: PLC0415

        return MilvusKeeper(_uri(folder, info), info.name, info.joint_dim)
    from vsrn.search.faiss import FaissKeeper  # noqa: PLC0415

    return FaissKeeper(folder)


def _uri(folder: Path, info: IndexInfo) -> str:
    return info.uri or str(folder.absolute() / MILVUS_FILE)
