"""Each step between photo and network, and between network and regions, against the obvious way to do it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_pool

from vsrn.errors import ConfigError, PhotoError
from vsrn.extractors.bottom_up.extractor import MEAN_BGR, ScaleRules, name_of, parse_counts, to_pixels
from vsrn.extractors.bottom_up.network import (
    POOLED_SIDE,
    STRIDE,
    ProposalRules,
    SelectionRules,
    apply_deltas,
    caffe_anchors,
    default_anchors,
    propose,
    select,
)

Box = tuple[float, float, float, float]


def overlap(one: Box, other: Box, edge: float) -> float:
    """Intersection over union, pixel edges counted as asked."""
    across = min(one[2], other[2]) - max(one[0], other[0]) + edge
    down = min(one[3], other[3]) - max(one[1], other[1]) + edge
    common = max(across, 0) * max(down, 0)
    areas = [(box[2] - box[0] + edge) * (box[3] - box[1] + edge) for box in (one, other)]
    return common / (sum(areas) - common)


def survivors(boxes: list[Box], scores: list[float], most: float, edge: float = 0.0) -> list[int]:
    """Suppression of all but the best, said plainly: likeliest first, each one far enough from those before."""
    kept: list[int] = []
    for place in sorted(range(len(boxes)), key=lambda place: -scores[place]):
        if all(overlap(boxes[place], boxes[better], edge) <= most for better in kept):
            kept.append(place)
    return kept


def random_boxes(generator: np.random.Generator, number: int, side: float = 300.0) -> npt.NDArray[np.float32]:
    corners = generator.uniform(0, side, (number, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1).astype(np.float32)


def as_boxes(array: npt.NDArray[np.floating]) -> list[Box]:
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in array]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(0, 20))
def test_regions_are_chosen_as_one_would_by_hand(seed: int, R: int, C: int, fewest: int, more: int) -> None:
    generator = np.random.default_rng(seed)
    boxes, probabilities = random_boxes(generator, R), generator.dirichlet([0.3] * (C + 1), R).astype(np.float32)[:, :C]
    rules = SelectionRules(fewest, fewest + more)
    rows, scores = select(torch.from_numpy(boxes), torch.from_numpy(probabilities), rules)

    best = [0.0] * R
    for of_class in probabilities.T.tolist():
        for place in survivors(as_boxes(boxes), of_class, 0.3):
            best[place] = max(best[place], of_class[place])
    wanted = sum(score >= 0.2 for score in best)
    number = min(R, rules.most, max(wanted, rules.fewest))
    assert len(rows) == number
    assert scores.tolist() == sorted(best, reverse=True)[:number]
    assert [best[row] for row in rows] == scores.tolist()
    assert len(set(rows.tolist())) == number


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_proposals_are_anchors_moved_clipped_sifted_and_suppressed(edge: float) -> None:
    generator = np.random.default_rng(3)
    height, width, photo = 4, 5, (64, 78)
    rules = ProposalRules(min_side=30, before_nms=150, after_nms=25, edge=edge)
    objectness = generator.normal(size=(12, height, width)).astype(np.float32)
    deltas = generator.normal(size=(48, height, width), scale=0.3).astype(np.float32)
    ours = propose(torch.from_numpy(objectness), torch.from_numpy(deltas), default_anchors(), photo, rules)

    boxes: list[Box] = []
    scores: list[float] = []
    for row in range(height):
        for column in range(width):
            for number, (left, top, right, bottom) in enumerate(as_boxes(default_anchors().numpy())):
                dx, dy, dw, dh = (float(move) for move in deltas[4 * number : 4 * number + 4, row, column])
                wide, high = right - left + edge, bottom - top + edge
                x = left + 16 * column + wide / 2 + dx * wide
                y = top + 16 * row + high / 2 + dy * high
                wide, high = wide * math.exp(dw), high * math.exp(dh)
                corners = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
                limits = (photo[1] - edge, photo[0] - edge) * 2
                a, b, c, d = (min(max(corner, 0), limit) for corner, limit in zip(corners, limits, strict=True))
                if c - a + edge > 30 and d - b + edge > 30:
                    boxes.append((a, b, c, d))
                    scores.append(float(objectness[number, row, column]))
    first = sorted(range(len(boxes)), key=lambda place: -scores[place])[:150]
    boxes, scores = [boxes[place] for place in first], [scores[place] for place in first]
    expected = [boxes[place] for place in survivors(boxes, scores, 0.7, edge)[:25]]
    assert len(expected) > 10
    assert np.abs(ours.numpy() - np.array(expected)).max() < 1e-3


def test_where_no_box_is_large_enough_the_whole_photo_is_looked_into() -> None:
    rules = ProposalRules(min_side=100)
    boxes = propose(torch.zeros(12, 2, 2), torch.zeros(48, 2, 2), default_anchors(), (32, 40), rules)
    assert boxes.tolist() == [[0, 0, 40, 32]]


def test_a_wild_delta_does_not_overflow() -> None:
    moved = apply_deltas(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 1e6, 1e6]]), 0.0)
    assert (moved[0, 2] - moved[0, 0]).item() == pytest.approx(1000)


def test_caffes_anchors_are_those_that_py_faster_rcnn_prints() -> None:
    """Its table for scales 8, 16 and 32 counts from 1; this one from 0."""
    printed = {
        (-84, -40, 99, 55), (-176, -88, 191, 103), (-360, -184, 375, 199),
        (-56, -56, 71, 71), (-120, -120, 135, 135), (-248, -248, 263, 263),
        (-36, -80, 51, 95), (-80, -168, 95, 183), (-168, -344, 183, 359),
    }  # fmt: skip
    ours = [tuple(anchor) for anchor in caffe_anchors().tolist()]
    assert [place for place, anchor in enumerate(ours) if anchor not in printed] == [0, 4, 8]
    assert set(ours) > printed


def test_pooling_takes_the_largest_of_each_bin() -> None:
    """RoIPool as torchvision has it, on boxes of every kind, against its definition."""
    generator = np.random.default_rng(0)
    feature_map = generator.normal(size=(3, 9, 13)).astype(np.float32)
    boxes = [(0, 0, 208, 144), (10, 8, 90, 70), (33.3, 20.7, 120.2, 99.9), (80.5, 80.5, 81, 97), (190, 120, 260, 200)]
    pooled = roi_pool(
        torch.from_numpy(feature_map)[None], [torch.tensor(boxes, dtype=torch.float32)], POOLED_SIDE, 1 / STRIDE
    )
    for box, ours in zip(boxes, pooled.numpy(), strict=True):
        left, top, right, bottom = (math.floor(edge / STRIDE + 0.5) for edge in box)
        wide, high = max(right - left + 1, 1) / POOLED_SIDE, max(bottom - top + 1, 1) / POOLED_SIDE
        for row in range(POOLED_SIDE):
            for column in range(POOLED_SIDE):
                rows = slice(*(min(max(edge, 0), 9) for edge in _bin(row, high, top)))
                columns = slice(*(min(max(edge, 0), 13) for edge in _bin(column, wide, left)))
                cells = feature_map[:, rows, columns].reshape(3, -1)
                largest = cells.max(axis=1) if cells.size else np.zeros(3)
                assert np.array_equal(ours[:, row, column], largest)


def _bin(place: int, size: float, start: int) -> tuple[int, int]:
    """First cell of a bin and the cell behind its last, in single precision as the published code reckons."""
    begin, end = np.float32(place) * np.float32(size), np.float32(place + 1) * np.float32(size)
    return start + math.floor(begin), start + math.ceil(end)


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (333, 500), (1200, 1600), (601, 1003), (1500, 400), (97, 53)]
)
def test_pixels_are_those_that_opencv_makes(height: int, width: int) -> None:
    cv2 = pytest.importorskip("cv2")
    photo = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    scale = 600 / min(height, width)
    if round(scale * max(height, width)) > 1000:
        scale = 1000 / max(height, width)
    centred = photo[:, :, ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    theirs = cv2.resize(centred, None, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    ours = to_pixels(photo, ScaleRules(), 16)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4


def test_a_photo_too_narrow_for_any_region_is_refused() -> None:
    with pytest.raises(PhotoError, match="is 700 x 10 pixels, too narrow"):
        to_pixels(np.zeros((10, 700, 3), np.uint8), ScaleRules(), 16)


def test_the_number_of_regions_is_part_of_the_name() -> None:
    for text, rules in (("36", (36, 36)), ("10-100", (10, 100)), ("50", (50, 50)), ("1-300", (1, 300))):
        chosen = parse_counts(text)
        assert (chosen.fewest, chosen.most) == rules
        name = name_of(chosen)
        assert name == ("bottom-up" if text == "36" else f"bottom-up:{text}")
    for text in ("", "0", "100-10", "10-301", "many", "-5", "10-"):
        with pytest.raises(ConfigError, match="does not say how many regions"):
            parse_counts(text)
