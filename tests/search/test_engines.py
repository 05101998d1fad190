"""Engines against the obvious search, and against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsrn.errors import SearchError
from vsrn.metrics import FloatArray, IntArray
from vsrn.search.engine import Engine, Found
from vsrn.search.faiss import Base, FaissEngine, FaissKeeper, find_graph
from vsrn.search.milvus import MilvusKeeper

NOTHING = np.empty(0, dtype=np.int64)


def unit_vectors(rows: int, dim: int = 16, *, seed: int = 0, near: int = 0) -> FloatArray:
    """(rows, dim) float16; in `near` clusters where that is given."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, dim))
    if near:
        vectors = (
            0.6 * vectors + np.random.default_rng(99).normal(size=(near, dim))[generator.integers(near, size=rows)]
        )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def obvious(vectors: FloatArray, query: FloatArray, k: int, wanted: IntArray) -> Found:
    scores = vectors[wanted].astype(np.float32) @ query
    order = np.argsort(-scores, kind="stable")[:k]
    return Found(wanted[order], scores[order])


def assert_same(ours: Found, expected: Found) -> None:
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(ours.rows, expected.rows)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 60),
    covered=st.integers(0, 60),
    k=st.integers(1, 70),
    seed=st.integers(0, 99),
    dead=st.sets(st.integers(0, 59)),
    allowed=st.none() | st.sets(st.integers(0, 59)),
)
def test_faiss_scans_exactly_with_dead_rows_filters_and_rows_that_came_later(
    rows: int, covered: int, k: int, seed: int, dead: set[int], allowed: set[int] | None
) -> None:
    vectors = unit_vectors(rows, seed=seed)
    gone = np.array(sorted(row for row in dead if row < rows), dtype=np.int64)
    let = None if allowed is None else np.array(sorted(row for row in allowed if row < rows), dtype=np.int64)
    engine = FaissEngine(Base(1, vectors[:covered], None), vectors, gone)
    query = unit_vectors(1, seed=seed + 1000)[0].astype(np.float32)
    wanted = np.setdiff1d(np.arange(rows) if let is None else let, gone)
    assert_same(engine.search(query, k, let), obvious(vectors, query, k, wanted))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph over 3,000 vectors in 60 clusters."""
    folder = tmp_path_factory.mktemp("graph")
    FaissKeeper(folder, graph_from=1000).finish(1, unit_vectors(3000, near=60))
    found = find_graph(folder, 1, 3000)
    assert found is not None
    return found


def recall(engine: Engine, vectors: FloatArray, wanted: IntArray, allowed: IntArray | None) -> float:
    """Share of the true best ten that an engine finds, over 100 queries; nothing unwanted may be found."""
    shares = []
    for query in unit_vectors(100, seed=5, near=60).astype(np.float32):
        found = engine.search(query, 10, allowed)
        expected = obvious(vectors, query, 10, wanted)
        assert set(found.rows.tolist()) <= set(wanted.tolist())
        assert (np.diff(found.scores) <= 0).all()
        np.testing.assert_allclose(found.scores, vectors[found.rows].astype(np.float32) @ query, atol=1e-5)
        shares.append(len(np.intersect1d(found.rows, expected.rows)) / len(expected.rows))
    return float(np.mean(shares))


@pytest.mark.parametrize("later", [0, 400])
@pytest.mark.parametrize("dead_share", [0.0, 0.2])
@pytest.mark.parametrize("allowed_share", [None, 0.01, 0.5])
def test_the_graph_finds_nearly_all_and_nothing_dead_or_filtered_out(
    graph: Path, later: int, dead_share: float, allowed_share: float | None
) -> None:
    vectors = np.concatenate([unit_vectors(3000, near=60), unit_vectors(later, seed=3, near=60)])
    generator = np.random.default_rng(1)
    rows = np.arange(len(vectors))
    dead = np.sort(generator.choice(rows, int(dead_share * len(rows)), replace=False))
    allowed = None
    if allowed_share is not None:
        allowed = np.sort(generator.choice(rows, int(allowed_share * len(rows)), replace=False))
    wanted = np.setdiff1d(rows if allowed is None else allowed, dead)
    engine = FaissEngine(Base(1, vectors, graph), vectors, dead)
    found = recall(engine, vectors, wanted, allowed)
    # A filter that lets little through is answered by a scan.
    assert found == 1 if allowed_share == 0.01 else found > 0.97


def test_a_graph_is_built_anew_only_where_many_rows_stand_outside_it(tmp_path: Path) -> None:
    keeper = FaissKeeper(tmp_path, graph_from=100)
    kept = []
    for rows in (99, 100, 105, 300, 310):
        keeper.finish(2, unit_vectors(rows))
        kept.append([path.name for path in tmp_path.iterdir()])
    assert kept == [[], ["graph-2-100.faiss"], ["graph-2-100.faiss"], ["graph-2-300.faiss"], ["graph-2-300.faiss"]]
    # A reader that knows fewer rows than the graph has scans them.
    assert find_graph(tmp_path, 2, 299) is None
    assert find_graph(tmp_path, 1, 300) is None


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph-1-50.faiss").write_bytes(b"no graph" * 99)
    with pytest.raises(SearchError, match=r"graph-1-50.faiss cannot be read"):
        Base(1, unit_vectors(60), tmp_path / "graph-1-50.faiss")
    FaissKeeper(tmp_path, graph_from=1).finish(1, unit_vectors(70, dim=8))
    with pytest.raises(SearchError, match=r"is not the graph of this index"):
        Base(1, unit_vectors(80), tmp_path / "graph-1-70.faiss")


def test_milvus_finds_what_faiss_finds_while_rows_come_and_go(tmp_path: Path) -> None:
    vectors = unit_vectors(2500)
    uri = str(tmp_path / "lite.db")
    keeper = MilvusKeeper(uri, "test", 16)
    keeper.begin(1, vectors[:1200], NOTHING)
    keeper.add(1200, vectors[1200:2000])
    dead = np.arange(7, 2000, 9)
    keeper.remove(dead)
    queries = unit_vectors(20, seed=8).astype(np.float32)
    for num_rows in (2000, 1900):
        reader = MilvusKeeper(uri, "test", 16)
        ours = reader.open(1, vectors[:num_rows], NOTHING)
        alive = dead[dead < num_rows]
        theirs = FaissEngine(Base(1, vectors[:num_rows], None), vectors[:num_rows], alive)
        for allowed in (None, NOTHING, np.arange(0, num_rows, 3)):
            for k in (1, 10, 2600):
                for query in queries[:4]:
                    assert_same(ours.search(query, k, allowed), theirs.search(query, k, allowed))
        reader.close()
    keeper.close()


def test_milvus_is_brought_back_in_step_after_a_kill(tmp_path: Path) -> None:
    """It holds rows that were never acknowledged and dead ones, and it has lost others."""
    vectors, uri = unit_vectors(300), str(tmp_path / "lite.db")
    keeper = MilvusKeeper(uri, "test", 16)
    keeper.begin(1, vectors[:200], NOTHING)
    keeper.add(200, unit_vectors(100, seed=9))
    keeper.remove(np.arange(5))
    keeper.close()
    dead = np.array([50, 60])
    keeper = MilvusKeeper(uri, "test", 16)
    keeper.begin(1, vectors[:250], dead)
    reader = MilvusKeeper(uri, "test", 16)
    engine = reader.open(1, vectors[:250], dead)
    wanted = np.setdiff1d(np.arange(250), dead)
    for query in unit_vectors(5, seed=8).astype(np.float32):
        assert_same(engine.search(query, 300), obvious(vectors, query, 300, wanted))
    keeper.forget(1)
    with pytest.raises(SearchError, match="does not hold this index"):
        reader.open(1, vectors[:250], dead)
    reader.close()
    keeper.close()


def test_a_milvus_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(SearchError, match="Milvus at http://127.0.0.1:9 failed"):
        MilvusKeeper("http://127.0.0.1:9", "test", 16).open(1, unit_vectors(5), NOTHING)
