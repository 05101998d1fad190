"""Ranks counted in torch, as on a CUDA device, against numpy's and against a count by its definition; on the CPU."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsrn.encoders.ranking import rank_encoded, rank_on
from vsrn.errors import SimilarityError
from vsrn.metrics import EncodedSplit, FloatArray, IntArray, Ranks, order_similarities, rank_blocks, similarity_blocks

Problem = tuple[list[EncodedSplit], IntArray, list[float] | None]


def counted(similarities: FloatArray, owners: IntArray) -> Ranks:
    """How many wrong items are at least as similar as the best true one, by the definition."""
    to_text = [
        sum(score >= row[owners == image].max() for score in row[owners != image])
        for image, row in enumerate(similarities)
    ]
    to_image = [
        sum(column[image] >= column[owner] for image in range(len(column)) if image != owner)
        for column, owner in zip(similarities.T, owners, strict=True)
    ]
    return Ranks(np.array(to_text), np.array(to_image))


def check_same(found: Ranks, wanted: Ranks) -> None:
    np.testing.assert_array_equal(found.image_to_text, wanted.image_to_text)
    np.testing.assert_array_equal(found.text_to_image, wanted.text_to_image)


@st.composite
def exact_problems(draw: st.DrawFn) -> Problem:
    """One to three models whose products are small whole numbers, and captions of any image in any order."""
    images = draw(st.integers(1, 7))
    extra = draw(st.lists(st.integers(0, images - 1), max_size=9))
    owners = np.array(draw(st.permutations([*range(images), *extra])))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    levels, models = draw(st.sampled_from([1, 2, 9])), draw(st.integers(1, 3))

    def vectors(rows: int) -> FloatArray:
        return generator.integers(-levels, levels + 1, (rows, 4)).astype(np.float32)

    weights = draw(st.sampled_from([None, [1.0, 2.0, 4.0][:models], [0.3, 0.1, 0.7][:models]]))
    return [EncodedSplit(vectors(images), vectors(len(owners))) for _ in range(models)], owners, weights


@given(problem=exact_problems(), rows=st.integers(1, 8), keeps=st.booleans())
def test_ranks_are_numpys_and_the_definitions(problem: Problem, rows: int, keeps: bool) -> None:
    models, owners, weights = problem
    size = 4 * len(owners)
    found = rank_on("cpu", models, owners, weights=weights, block_bytes=rows * size, kept_bytes=2**20 if keeps else 0)
    blocks = similarity_blocks(models, weights=weights)
    check_same(found, rank_blocks(blocks, owners))
    check_same(found, counted(np.concatenate([block for _, block in blocks()]), owners))
    assert found.image_to_text.dtype == found.text_to_image.dtype == np.int64


@pytest.mark.parametrize("kept_bytes", [0, 2**30])
@pytest.mark.parametrize("shuffled", [False, True])
def test_ranks_of_a_split_with_many_ties_are_numpys(shuffled: bool, kept_bytes: int) -> None:
    generator = np.random.default_rng(0)
    # Multiples of 1/64 up to 8/64, as in benchmarks/problem.py: inner products are exact in float32.
    images = (generator.integers(-8, 9, (300, 32)) / 64).astype(np.float32)
    owners = np.repeat(np.arange(300), 5)
    noise = (generator.integers(-8, 9, (1500, 32)) / 64).astype(np.float32)
    captions = np.where(generator.random(noise.shape) < 0.3, images[owners], noise)
    if shuffled:
        order = generator.permutation(len(owners))
        captions, owners = captions[order], owners[order]
    similarities = images @ captions.T
    assert ((similarities == similarities[owners, np.arange(1500)]).sum(axis=0) > 1).mean() > 0.1, "there are ties"
    seen: list[int] = []
    found = rank_on("cpu", [EncodedSplit(images, captions)], owners, seen.append, None, 2**18, kept_bytes)
    check_same(found, rank_blocks(lambda: [(0, similarities)], owners))
    assert sum(seen) == 300
    assert len(seen) > 1


def test_ranks_of_random_vectors_are_those_of_their_similarities() -> None:
    generator = np.random.default_rng(1)
    images, captions = (generator.normal(size=(rows, 32)) for rows in (200, 1000))
    owners = generator.permutation(np.repeat(np.arange(200), 5))
    # In float64 no two similarities are so near to each other that the order of summation would matter.
    found = rank_on("cpu", [EncodedSplit(images, captions)], owners)
    check_same(found, rank_blocks(lambda: [(0, images @ captions.T)], owners))


@given(data=st.data())
def test_what_cannot_be_ranked_is_refused_in_numpys_words(data: st.DataObject) -> None:
    images, captions = np.ones((4, 3), np.float32), np.ones((6, 3), np.float32)
    owners = np.array(data.draw(st.lists(st.integers(0, 5), min_size=6, max_size=6)))
    for array in (images, captions):
        if data.draw(st.booleans()):
            array[data.draw(st.integers(0, len(array) - 1)), 1] = np.nan
    models = [EncodedSplit(images, captions)]
    try:
        wanted: Any = rank_blocks(similarity_blocks(models), owners)
    except SimilarityError as error:
        with pytest.raises(SimilarityError, match=f"^{re.escape(str(error))}$"):
            rank_on("cpu", models, owners, block_bytes=1)
    else:
        check_same(rank_on("cpu", models, owners, block_bytes=1), wanted)


def test_what_is_encoded_on_a_processor_or_compared_otherwise_is_ranked_by_numpy() -> None:
    generator = np.random.default_rng(2)
    images, owners = generator.random((5, 3)).astype(np.float32), np.repeat(np.arange(5), 2)
    captions = generator.random((10, 3)).astype(np.float32)
    # No such device is there, so torch would fail.
    for encoded in (EncodedSplit(images, captions), EncodedSplit(images, captions, order_similarities, 0, "cuda:77")):
        check_same(rank_encoded([encoded], owners), rank_blocks(similarity_blocks([encoded]), owners))
