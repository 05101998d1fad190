"""Random region dropping: what is left of an image, how often, and the same after a stop and on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import make_store

from vsrn.config import RegionOrder
from vsrn.data.splits import Split, open_split
from vsrn.data.vocabulary import build_vocabulary
from vsrn.model.base import Batch
from vsrn.training.batches import ResidentRegions, TrainingBatches, draw_margins, drop_regions

MARGINS = st.floats(-1, 1, width=32)


@given(data=st.data(), images=st.integers(1, 5), regions=st.integers(1, 8), padded=st.booleans())
def test_what_is_kept_is_what_a_loop_over_regions_keeps(data: Any, images: int, regions: int, padded: bool) -> None:
    features = 1 + np.random.default_rng(0).random((images, regions, 3), dtype=np.float32)
    rows = st.lists(MARGINS, min_size=regions, max_size=regions, unique=True)
    margins = np.array(data.draw(st.lists(rows, min_size=images, max_size=images)), dtype=np.float32)
    counts = np.array(data.draw(st.lists(st.integers(1, regions), min_size=images, max_size=images)))
    before = features.copy()
    kept, left = drop_regions(features, counts if padded else None, margins)
    assert np.array_equal(features, before)
    assert kept.shape == features.shape
    for image in range(images):
        real = range(counts[image] if padded else regions)
        stays = [place for place in real if margins[image, place] >= 0]
        if not stays:
            stays = [max(real, key=lambda place: margins[image, place])]
        assert left[image] == len(stays)
        assert np.array_equal(kept[image, : len(stays)], features[image, stays])
        assert not kept[image, len(stays) :].any()


def test_each_image_draws_its_own_probability_up_to_the_most() -> None:
    shares = (draw_margins(4000, 400, 0.2, (1, 2)) < 0).mean(axis=1)
    # Uniform between 0 and 0.2, blurred by 400 draws each.
    assert shares.mean() == pytest.approx(0.1, abs=0.005)
    assert shares.std() == pytest.approx(0.2 / np.sqrt(12), abs=0.005)
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.05, 0.1, 0.15], abs=0.01)
    assert not (draw_margins(10, 10, 0.0, (1, 2)) < 0).any()


@pytest.fixture
def split(tmp_path: Path) -> Split:
    store = make_store(tmp_path / "store", {"train": 40})
    np.save(store / "train_counts.npy", np.arange(40) % 4 + 2)
    return open_split(store, "train")


def batches(split: Split, epoch: int = 0, first_step: int = 0, dropped: float = 0.9, **fields: Any) -> list[Batch]:
    made = TrainingBatches(split, build_vocabulary(split.captions, 1), 16, seed=3, dropped=dropped, **fields)
    return list(made.epoch(epoch, first_step))


def contents(batch: Batch) -> list[tuple[bytes, int]]:
    """What each pair's image holds, and how much of it is real."""
    assert batch.counts is not None
    return [(row.numpy().tobytes(), int(count)) for row, count in zip(batch.features, batch.counts, strict=True)]


def test_every_image_of_a_batch_is_some_of_its_own_regions_in_their_order(split: Split) -> None:
    fewer = 0
    for dropping, whole in zip(batches(split), batches(split, dropped=0.0), strict=True):
        assert dropping.tokens.equal(whole.tokens)
        assert dropping.counts is not None
        assert whole.counts is not None
        fewer += int((dropping.counts < whole.counts).sum())
        for ours, left, theirs, all_of_them in zip(
            dropping.features, dropping.counts, whole.features, whole.counts, strict=True
        ):
            remaining = iter([region.tolist() for region in theirs[:all_of_them]])
            # `in` an iterator reads it up to what it finds, so this holds for a subsequence alone.
            assert all(region.tolist() in remaining for region in ours[:left])
            assert left >= 1
            assert not ours[left:].any()
    assert fewer > 20


@pytest.mark.parametrize("order", ["stored", "reversed"])
@pytest.mark.parametrize("dropped", [0.0, 0.9])
def test_batches_gathered_from_regions_kept_on_a_device_are_those_read_from_disk(
    split: Split, order: RegionOrder, dropped: float
) -> None:
    split = split.only(np.array([5, 38, 2, *range(8, 30)])).in_order(order)
    read, kept = (
        TrainingBatches(split, build_vocabulary(split.captions, 1), 16, seed=3, dropped=dropped) for _ in range(2)
    )
    kept.resident = ResidentRegions(split, torch.device("cpu"))
    for theirs, ours in zip(read.epoch(1), kept.epoch(1), strict=True):
        for expected, tensor in zip(theirs, ours, strict=True):
            assert tensor is not None
            assert expected is not None
            assert tensor.dtype == expected.dtype
            assert tensor.equal(expected)


def test_a_step_drops_the_same_after_a_stop_and_other_regions_in_another_epoch(split: Split) -> None:
    whole = [contents(batch) for batch in batches(split, epoch=1)]
    assert [contents(batch) for batch in batches(split, epoch=1, first_step=3)] == whole[3:]
    others = {image for batch in batches(split, epoch=2) for image in contents(batch)}
    assert {image for batch in whole for image in batch} != others


def test_two_processes_drop_what_one_drops(split: Split) -> None:
    shares = [batches(split, rank=rank, processes=2) for rank in (0, 1)]
    for whole, *parts in zip(batches(split), *shares, strict=True):
        assert sorted(contents(whole)) == sorted(contents(parts[0]) + contents(parts[1]))
