"""Which engine an index has, and how to open it."""

from __future__ import annotations

from pathlib import Path

from vsrn.errors import SearchError
from vsrn.files import printable
from vsrn.metrics import FloatArray, IntArray
from vsrn.search.engine import Engine, Keeper
from vsrn.search.layout import MILVUS_FILE, IndexInfo
from vsrn.search.records import State


def open_engine(
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
    # Each engine's library is loaded only where an index has it.
    if info.engine == "milvus":
        from vsrn.search.milvus import MilvusEngine  # noqa: PLC0415

        connected = last if isinstance(last, MilvusEngine) else None
        return MilvusEngine(_uri(folder, info, uri), info.name, state.generation, state.num_rows, connected)
    from vsrn.search.faiss import Base, FaissEngine, find_graph  # noqa: PLC0415

    graph = find_graph(folder, state.generation, state.num_rows)
    if isinstance(last, FaissEngine) and last.base.serves(state.generation, state.num_rows, graph):
        return FaissEngine(last.base, vectors, dead)
    return FaissEngine(Base(state.generation, vectors, graph), vectors, dead)


def open_keeper(folder: Path, info: IndexInfo, uri: str = "") -> Keeper:
    """What keeps the engine in step while the index is written; `uri` as in `open_engine`."""
    if info.engine == "milvus":
        from vsrn.search.milvus import MilvusKeeper  # noqa: PLC0415

        return MilvusKeeper(_uri(folder, info, uri), info.name, info.joint_dim)
    from vsrn.search.faiss import FaissKeeper  # noqa: PLC0415

    return FaissKeeper(folder)


def _uri(folder: Path, info: IndexInfo, typed: str) -> str:
    """Where Milvus is. Raises `SearchError` where the index names a place outside of its folder and nobody else does.

    An index may come from a stranger, and whoever it names would be sent every query.
    """
    if info.uri and typed != info.uri:
        raise SearchError(
            f"{folder} keeps its vectors in Milvus at {printable(info.uri)}, and nothing is contacted because a folder"
            f" says so; if that place is yours, add --uri {printable(info.uri)}."
        )
    lite = folder.absolute() / MILVUS_FILE
    if not info.uri and lite.is_symlink():
        raise SearchError(f"{lite} is a link, which `vsrn index` never makes; do not use this index.")
    return info.uri or str(lite)
