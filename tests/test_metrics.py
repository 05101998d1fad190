"""Ranks against sorting, metrics against what the 2019 evaluation printed, intervals against resampling."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsrn.errors import SimilarityError
from vsrn.metrics import (
    SIMILARITIES,
    Block,
    Blocks,
    DirectionMetrics,
    EncodedSplit,
    FloatArray,
    IntArray,
    Ranks,
    bootstrap_intervals,
    direction_metrics,
    five_folds,
    order_similarities,
    rank_blocks,
    recall_at,
    retrieval_metrics,
    similarity_blocks,
)


@dataclass(frozen=True)
class Problem:
    """Similarities with many ties, and one or more captions per image in any order."""

    similarities: FloatArray
    image_of_caption: IntArray

    @property
    def image_to_text_ranks(self) -> IntArray:
        return rank_blocks(lambda: [(0, self.similarities)], self.image_of_caption).image_to_text

    @property
    def text_to_image_ranks(self) -> IntArray:
        return rank_blocks(lambda: [(0, self.similarities)], self.image_of_caption).text_to_image

    def blocks(self, rows: int) -> Blocks:
        def blocks() -> Iterator[Block]:
            for first in range(0, len(self.similarities), rows):
                yield first, self.similarities[first : first + rows]

        return blocks


@st.composite
def retrieval_problems(draw: st.DrawFn) -> Problem:
    images = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, images - 1), max_size=8))
    image_of_caption = draw(st.permutations([*range(images), *extra]))
    levels = draw(st.sampled_from([1, 2, 3, 50]))
    cells = images * len(image_of_caption)
    values = draw(st.lists(st.integers(-levels, levels), min_size=cells, max_size=cells))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    similarities = (np.array(values) / 7).astype(kind).reshape(images, -1)
    if draw(st.booleans()):
        similarities[similarities == similarities.min()] = -np.inf
    return Problem(similarities, np.array(image_of_caption))


@given(problem=retrieval_problems())
def test_rank_is_the_place_in_a_sort_that_puts_true_captions_last_among_ties(problem: Problem) -> None:
    for image, row in enumerate(problem.similarities):
        own = problem.image_of_caption == image
        order = sorted(range(len(row)), key=lambda caption: (-row[caption], own[caption]))
        first = next(place for place, caption in enumerate(order) if own[caption])
        wrong_before = sum(not own[caption] for caption in order[:first])
        assert problem.image_to_text_ranks[image] == wrong_before


@given(problem=retrieval_problems())
def test_text_to_image_rank_is_the_place_in_a_sort_that_puts_the_true_image_last_among_ties(problem: Problem) -> None:
    for caption, column in enumerate(problem.similarities.T):
        image = int(problem.image_of_caption[caption])
        order = sorted(range(len(column)), key=lambda other: (-column[other], other == image))
        assert problem.text_to_image_ranks[caption] == order.index(image)


@given(problem=retrieval_problems(), rows=st.integers(1, 7))
def test_ranks_do_not_depend_on_the_size_of_the_blocks(problem: Problem, rows: int) -> None:
    ranks = rank_blocks(problem.blocks(rows), problem.image_of_caption)
    np.testing.assert_array_equal(ranks.image_to_text, problem.image_to_text_ranks)
    np.testing.assert_array_equal(ranks.text_to_image, problem.text_to_image_ranks)


@given(problem=retrieval_problems(), data=st.data())
def test_one_nan_anywhere_is_refused(problem: Problem, data: st.DataObject) -> None:
    places = st.tuples(*(st.integers(0, size - 1) for size in problem.similarities.shape))
    problem.similarities[data.draw(places)] = np.nan
    for rank in (
        lambda: problem.image_to_text_ranks,
        lambda: problem.text_to_image_ranks,
        lambda: rank_blocks(problem.blocks(2), problem.image_of_caption),
    ):
        with pytest.raises(SimilarityError, match="NaN"):
            rank()


def test_an_image_without_a_caption_and_a_caption_without_an_image_are_refused() -> None:
    similarities = np.zeros((3, 3), dtype=np.float32)
    with pytest.raises(SimilarityError, match="image 1 has no caption"):
        rank_blocks(Problem(similarities, np.array([0, 2, 2])).blocks(2), np.array([0, 2, 2]))
    beyond = np.array([0, 1, 2, 7])
    with pytest.raises(SimilarityError, match="caption 3 belongs to image 7"):
        rank_blocks(Problem(np.zeros((3, 4), dtype=np.float32), beyond).blocks(2), beyond)


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return dict(np.load(golden / "ranking" / "ranking.npz"))


@pytest.mark.parametrize("similarity", ["cosine", "order"])
@pytest.mark.parametrize("rows", [1, 7, 60])
def test_ranks_and_metrics_are_those_of_the_2019_evaluation(
    recorded: dict[str, Any], similarity: str, rows: int
) -> None:
    captions = recorded["captions"]
    blocks = similarity_blocks(
        [EncodedSplit(recorded["images"], captions, SIMILARITIES[similarity])], block_bytes=rows * 4 * len(captions)
    )
    assert max(len(block) for _, block in blocks()) == rows
    ranks = rank_blocks(blocks, five_each(recorded))
    np.testing.assert_array_equal(ranks.image_to_text, recorded[f"i2t_{similarity}_ranks"])
    np.testing.assert_array_equal(ranks.text_to_image, recorded[f"t2i_{similarity}_ranks"])
    metrics = retrieval_metrics(ranks)
    np.testing.assert_array_equal(as_recorded(metrics.image_to_text), recorded[f"i2t_{similarity}"])
    np.testing.assert_array_equal(as_recorded(metrics.text_to_image), recorded[f"t2i_{similarity}"])


def test_an_ensemble_has_the_metrics_of_the_2019_evaluation(recorded: dict[str, Any]) -> None:
    blocks = similarity_blocks(
        [
            EncodedSplit(recorded["images"], recorded["captions"]),
            EncodedSplit(recorded["images2"], recorded["captions2"]),
        ],
        block_bytes=9000,
    )
    metrics = retrieval_metrics(rank_blocks(blocks, five_each(recorded)))
    np.testing.assert_array_equal(as_recorded(metrics.image_to_text), recorded["i2t_ensemble"])
    np.testing.assert_array_equal(as_recorded(metrics.text_to_image), recorded["t2i_ensemble"])


def test_an_ensemble_averages_similarities_of_models_of_different_sizes() -> None:
    generator = np.random.default_rng(0)
    images = [generator.normal(size=(7, dim)) for dim in (3, 5, 2)]
    captions = [generator.normal(size=(11, dim)) for dim in (3, 5, 2)]
    mean = sum(ours @ theirs.T for ours, theirs in zip(images, captions, strict=True)) / 3
    models = [EncodedSplit(ours, theirs) for ours, theirs in zip(images, captions, strict=True)]
    whole = np.concatenate([block for _, block in similarity_blocks(models, block_bytes=100)()])
    np.testing.assert_allclose(whole, mean, rtol=1e-12)


def test_order_similarity_is_minus_the_length_of_what_the_caption_has_beyond_the_image() -> None:
    images, captions = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [4.0, 6.0]])
    ((_, block),) = similarity_blocks([EncodedSplit(images, captions, order_similarities)])()
    np.testing.assert_allclose(block, [[0.0, -5.0], [-np.sqrt(2), -np.sqrt(52)]])


many_ranks = st.lists(st.integers(0, 30), min_size=1, max_size=40).map(np.array)


@given(ranks=many_ranks, k=st.integers(1, 12))
def test_recall_counts_the_queries_whose_match_is_among_the_first_k(ranks: IntArray, k: int) -> None:
    hits = sum(1 for rank in ranks if rank + 1 <= k)
    assert recall_at(ranks, k) == pytest.approx(100 * hits / len(ranks))


@given(ranks=many_ranks)
def test_median_and_mean_rank_are_the_fields(ranks: IntArray) -> None:
    ordered = sorted(int(rank) for rank in ranks)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    metrics = direction_metrics(ranks)
    assert metrics.median_rank == int(middle) + 1
    assert metrics.mean_rank == pytest.approx(sum(ordered) / len(ordered) + 1)
    assert metrics.average_recall == pytest.approx(sum(recall_at(ranks, k) for k in (1, 5, 10)) / 3)


@given(to_text=many_ranks, to_image=many_ranks)
def test_rsum_is_the_sum_of_six_recalls_and_json_rounds_to_two_places(to_text: IntArray, to_image: IntArray) -> None:
    metrics = retrieval_metrics(Ranks(to_text, to_image))
    six = [recall_at(ranks, k) for ranks in (to_text, to_image) for k in (1, 5, 10)]
    assert metrics.rsum == pytest.approx(sum(six))
    written = metrics.to_json()
    assert written["rsum"] == round(sum(six), 2)
    assert [written["image_to_text"][f"recall_at_{k}"] for k in (1, 5, 10)] == [round(recall, 2) for recall in six[:3]]


def test_five_folds_are_consecutive_thousands_and_their_metrics_are_averaged() -> None:
    ranks = np.random.default_rng(0).integers(0, 20, size=3000)
    folds = five_folds(3000)
    assert [ranks[fold].tolist() for fold in folds] == [
        ranks[:1000].tolist(),
        ranks[1000:2000].tolist(),
        ranks[2000:].tolist(),
    ]
    mean = retrieval_metrics(*(Ranks(ranks[fold], ranks[fold]) for fold in folds))
    slow = [sum(rank < 5 for rank in ranks[first : first + 1000]) / 10 for first in (0, 1000, 2000)]
    assert mean.text_to_image.recall_at_5 == pytest.approx(sum(slow) / 3)
    medians = [np.floor(np.median(ranks[first : first + 1000])) + 1 for first in (0, 1000, 2000)]
    assert mean.image_to_text.median_rank == pytest.approx(sum(medians) / 3)


@pytest.mark.parametrize("images", [0, 1, 999, 1001, 5500])
def test_images_that_do_not_divide_into_thousands_have_no_folds(images: int) -> None:
    with pytest.raises(SimilarityError, match="--five-fold"):
        five_folds(images)


def test_intervals_are_those_of_resampling_images_one_by_one() -> None:
    ranks, owners = ragged_ranks(images=40, seed=1)
    intervals = bootstrap_intervals([(ranks, owners)], samples=4000)
    for name, values in slow_bootstrap(ranks, owners, samples=4000).items():
        low, high = np.percentile(values, [2.5, 97.5])
        # Both are estimates from 4,000 draws; the widths here are 20 to 130 points.
        assert intervals[name].low == pytest.approx(low, abs=0.06 * (high - low)), name
        assert intervals[name].high == pytest.approx(high, abs=0.06 * (high - low)), name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(20, 80))
def test_intervals_contain_what_they_are_intervals_of(seed: int, images: int) -> None:
    ranks, owners = ragged_ranks(images, seed)
    metrics = retrieval_metrics(ranks)
    intervals = bootstrap_intervals([(ranks, owners)], samples=400)
    points = {"rsum": metrics.rsum}
    for direction in ("image_to_text", "text_to_image"):
        for k, recall in zip((1, 5, 10), getattr(metrics, direction).recalls, strict=True):
            points[f"{direction}.recall_at_{k}"] = recall
    assert points.keys() == intervals.keys()
    for name, point in points.items():
        assert intervals[name].low - 1e-9 <= point <= intervals[name].high + 1e-9, name


def test_intervals_of_folds_are_those_of_the_average_and_the_seed_decides_them() -> None:
    one, other = ragged_ranks(images=30, seed=3), ragged_ranks(images=50, seed=4)
    both = bootstrap_intervals([one, other], samples=4000)
    drawn_one, drawn_other = (slow_bootstrap(*fold, samples=4000) for fold in (one, other))
    for name, values in drawn_one.items():
        low, high = np.percentile((np.array(values) + drawn_other[name]) / 2, [2.5, 97.5])
        assert both[name].low == pytest.approx(low, abs=0.08 * (high - low)), name
        assert both[name].high == pytest.approx(high, abs=0.08 * (high - low)), name
    assert bootstrap_intervals([one, other], samples=4000) == both
    assert bootstrap_intervals([one, other], samples=4000, seed=1) != both


def test_a_perfect_model_has_intervals_without_width() -> None:
    found = Ranks(np.zeros(8, dtype=int), np.zeros(16, dtype=int))
    intervals = bootstrap_intervals([(found, np.repeat(np.arange(8), 2))], samples=50)
    assert intervals["rsum"].low == pytest.approx(600)
    assert intervals["rsum"].high == pytest.approx(600)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment that writes the tables of docs/results.md."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "experiments")
    return importlib.import_module("table")


def test_a_difference_draws_the_same_images_for_both_sides_and_averages_seeds(table: ModuleType) -> None:
    owners = np.repeat(np.arange(40), 3)
    generator = np.random.default_rng(5)

    def runs(worst: int, seeds: int) -> list[Ranks]:
        return [Ranks(generator.integers(0, worst, 40), generator.integers(0, worst, 120)) for _ in range(seeds)]

    ours, theirs = runs(12, seeds=3), runs(20, seeds=2)
    difference, interval = table.rsum_difference(ours, theirs, owners, samples=4000)
    assert difference == pytest.approx(
        np.mean([retrieval_metrics(run).rsum for run in ours])
        - np.mean([retrieval_metrics(run).rsum for run in theirs])
    )
    values = []
    for _ in range(4000):
        chosen = generator.integers(0, 40, size=40)
        captions = np.concatenate([np.flatnonzero(owners == image) for image in chosen])
        sides = [
            np.mean([retrieval_metrics(Ranks(r.image_to_text[chosen], r.text_to_image[captions])).rsum for r in side])
            for side in (ours, theirs)
        ]
        values.append(sides[0] - sides[1])
    low, high = np.percentile(values, [2.5, 97.5])
    assert interval.low == pytest.approx(low, abs=0.06 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.06 * (high - low))


def test_a_model_does_not_differ_from_itself(table: ModuleType) -> None:
    ranks, owners = ragged_ranks(images=30, seed=7)
    difference, interval = table.rsum_difference([ranks], [ranks], owners, samples=50)
    assert (difference, interval.low, interval.high) == pytest.approx((0, 0, 0))


@pytest.mark.parametrize("models", [1, 2])
def test_ranking_coco_5k_needs_less_than_a_gigabyte_beyond_the_embeddings(models: int) -> None:
    generator = np.random.default_rng(0)
    images = [generator.normal(size=(5_000, 8)).astype(np.float32) for _ in range(models)]
    captions = [generator.normal(size=(25_000, 8)).astype(np.float32) for _ in range(models)]
    owners = np.repeat(np.arange(5_000), 5)
    encoded = [EncodedSplit(ours, theirs) for ours, theirs in zip(images, captions, strict=True)]
    tracemalloc.start()
    try:
        ranks = rank_blocks(similarity_blocks(encoded), owners)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**30
    # A few queries, counted one by one.
    for caption in (0, 12_345, 24_999):
        column = sum(ours @ theirs[caption] for ours, theirs in zip(images, captions, strict=True))
        assert abs(int((column > column[owners[caption]]).sum()) - int(ranks.text_to_image[caption])) <= 1


def five_each(recorded: dict[str, Any]) -> IntArray:
    return np.repeat(np.arange(len(recorded["images"])), 5)


def as_recorded(metrics: DirectionMetrics) -> list[float]:
    return [*metrics.recalls, metrics.median_rank, metrics.mean_rank]


def ragged_ranks(images: int, seed: int) -> tuple[Ranks, IntArray]:
    """Ranks of a middling model, and images with one to seven captions."""
    generator = np.random.default_rng(seed)
    owners = np.repeat(np.arange(images), generator.integers(1, 8, size=images))
    difficulty = generator.integers(1, 16, size=images)
    to_text = generator.integers(0, difficulty)
    return Ranks(to_text, generator.integers(0, difficulty[owners])), owners


def slow_bootstrap(ranks: Ranks, owners: IntArray, samples: int) -> dict[str, list[float]]:
    """Draw images one by one, take all captions of each, and count."""
    generator = np.random.default_rng(99)
    images = len(ranks.image_to_text)
    captions_of = [np.flatnonzero(owners == image) for image in range(images)]
    drawn: dict[str, list[float]] = {}
    for _ in range(samples):
        chosen = generator.integers(0, images, size=images)
        to_text = ranks.image_to_text[chosen]
        to_image = ranks.text_to_image[np.concatenate([captions_of[image] for image in chosen])]
        total = 0.0
        for direction, found in (("image_to_text", to_text), ("text_to_image", to_image)):
            for k in (1, 5, 10):
                recall = 100 * np.count_nonzero(found < k) / len(found)
                drawn.setdefault(f"{direction}.recall_at_{k}", []).append(recall)
                total += recall
        drawn.setdefault("rsum", []).append(total)
    return drawn
