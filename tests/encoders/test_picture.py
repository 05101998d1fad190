"""Explanations drawn over photos: what must be seen is in the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsrn.encoders.draw import LEAST_SIDE, MOST_SIDE, draw_explanation
from vsrn.encoders.explain import Explanation, heat_map, region_shares
from vsrn.metrics import FloatArray

LEFT, RIGHT = (0.125, 0.25, 0.375, 0.75), (0.625, 0.25, 0.875, 0.75)


def explanation_of(weights: list[float], labels: list[str] | None = None) -> Explanation:
    boxes = np.array([LEFT, RIGHT][: len(weights)], np.float32)
    found = np.array(weights, np.float32)
    return Explanation(boxes, found, heat_map(boxes, region_shares(found, "sentence")), 0.25, labels, "sentence")


def photos() -> dict[str, Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, size=(640, 640, 3), dtype=np.uint8)
    return {
        "black": Image.new("RGB", (640, 640), "black"),
        "white": Image.new("RGB", (640, 640), "white"),
        "noise": Image.fromarray(noise),
        "grey, one channel": Image.new("L", (640, 640), 128),
    }


def pixels(picture: Image.Image) -> FloatArray:
    return np.asarray(picture.convert("RGB"), dtype=np.float32)


@pytest.mark.parametrize("name", photos())
def test_a_frame_is_a_white_line_between_black_ones_whatever_is_below(name: str) -> None:
    drawn = pixels(draw_explanation(photos()[name], explanation_of([1.0]), "a dog"))
    row = drawn[400]  # through the middle of the frame, below its tag
    for edge in (0.125 * 640, 0.375 * 640 - 1):
        around = row[round(edge) - 6 : round(edge) + 7].mean(axis=1)
        white = np.flatnonzero(around > 250)
        assert len(white) >= 3
        inside = around[: white[0]], around[white[-1] + 1 :]
        if name != "white":
            assert white[-1] - white[0] + 1 == len(white)
        assert all(side.min() < 40 for side in inside)


def test_only_regions_that_add_something_are_framed_and_at_most_k() -> None:
    photo = Image.new("RGB", (640, 640), "black")

    def framed(weights: list[float], k: int) -> list[bool]:
        drawn = pixels(draw_explanation(photo, explanation_of(weights), "a dog", k))
        return [bool((drawn[400, round(box[0] * 640) : round(box[0] * 640) + 5] > 250).any()) for box in (LEFT, RIGHT)]

    assert framed([0.2, 0.1], 2) == [True, True]
    assert framed([0.2, 0.1], 1) == [True, False]
    assert framed([0.1, 0.2], 1) == [False, True]
    assert framed([-0.2, 0.1], 2) == [False, True]
    assert framed([-0.2, -0.1], 2) == [False, False]


def test_hot_places_are_tinted_and_cold_ones_keep_their_picture() -> None:
    photo = photos()["noise"]
    hot = pixels(draw_explanation(photo, explanation_of([1.0, 0.0]), "a dog", k=0))[:640]
    none = pixels(draw_explanation(photo, explanation_of([0.0, 0.0]), "a dog", k=0))[:640]
    cold = np.ones((640, 640), dtype=bool)
    cold[150:490, 70:250] = False
    np.testing.assert_array_equal(hot[cold], none[cold])
    middle = hot[200:440, 100:220].reshape(-1, 3).mean(axis=0)
    # The hot end of the ramp is a light yellow.
    assert middle[0] > 200
    assert middle[0] > middle[2] + 60


@pytest.mark.parametrize("size", [(224, 224), (30, 2000), (4000, 3000), (1, 1), (500, 375)])
def test_photos_of_any_size_are_brought_to_one_that_letters_fit(size: tuple[int, int]) -> None:
    drawn = draw_explanation(Image.new("RGB", size, "green"), explanation_of([0.2, 0.1]), "a dog")
    longer = MOST_SIDE if max(size) > MOST_SIDE else max(LEAST_SIDE, *size)
    width = round(size[0] * longer / max(size))
    assert drawn.width == width
    assert drawn.height > round(size[1] * longer / max(size))


@settings(deadline=None, max_examples=40)
@given(sentence=st.text(max_size=400), label=st.text(max_size=60))
def test_no_sentence_and_no_name_breaks_the_picture_or_runs_out_of_it(sentence: str, label: str) -> None:
    photo = Image.new("RGB", (640, 64), "green")
    drawn = draw_explanation(photo, explanation_of([0.2, 0.1], [label, "dog"]), sentence)
    assert drawn.width == 640
    assert drawn.height < 64 + 300
    # Nothing is written into the margin on the right.
    assert (pixels(drawn)[64:, -8:] == 255).all()


def test_the_sentence_and_the_names_are_written() -> None:
    photo = Image.new("RGB", (640, 640), "black")
    pictures = [
        pixels(draw_explanation(photo, explanation_of([1.0], [label]), sentence))
        for label, sentence in (("dog", "a dog"), ("cat", "a dog"), ("dog", "a cat"))
    ]
    named, said = (np.argwhere((other != pictures[0]).any(axis=2)) for other in pictures[1:])
    # A name stands in the corner of its frame, the sentence below the photo.
    assert len(named)
    assert (named >= [0.25 * 640 - 2, 0.125 * 640 - 2]).all()
    assert (named <= [0.25 * 640 + 40, 0.125 * 640 + 120]).all()
    assert len(said)
    assert said[:, 0].min() > 640


def test_neighbours_in_one_hot_place_are_one_box() -> None:
    boxes = np.array([(x / 10, 0.5, (x + 1) / 10, 0.6) for x in range(10)], np.float32)
    weights = np.array([0, 0.1, 0.9, 1.0, 0.8, 0, 0, 0.5, 0, 0], np.float32)
    explanation = Explanation(boxes, weights, np.zeros((112, 112), np.float32), 0.25, None, "sentence")
    drawn = pixels(draw_explanation(Image.new("RGB", (640, 640), "black"), explanation, "a dog", k=4))
    row = drawn[380, :, 0]
    framed = [place for place in range(10) if (row[place * 64 : place * 64 + 4] > 250).any()]
    # The third and the fifth touch the fourth, and the second is apart from it.
    assert framed == [1, 3, 7]


def test_the_view_by_words_frames_the_best_place_of_each_word() -> None:
    words = {"dog": np.array([2, 1], np.float32), "snow": np.array([0, 1], np.float32)}
    boxes = np.array([LEFT, RIGHT], np.float32)
    explanation = Explanation(
        boxes, np.ones(2, np.float32), np.zeros((112, 112), np.float32), 0.25, None, "words", words
    )
    drawn = pixels(draw_explanation(Image.new("RGB", (640, 640), "black"), explanation, "a dog in snow"))
    assert all((drawn[400, round(box[0] * 640) : round(box[0] * 640) + 5] > 250).any() for box in (LEFT, RIGHT))
    of_snow = explanation.of_word("snow")
    assert np.argmax(of_snow.weights) == 1
    drawn = pixels(draw_explanation(Image.new("RGB", (640, 640), "black"), of_snow, "a dog in snow"))
    assert not (drawn[400, 80:86] > 250).any()
