"""Photos as squares: torchvision's own transforms are the oracle, chance is held to its bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from vsrn.data.photo_splits import NARROWEST, WIDEST, View, random_box
from vsrn.errors import PhotoError


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("size", [(50, 40), (33, 97), (300, 20), (64, 64)])
def test_the_middle_is_what_torchvision_cuts_out(size: tuple[int, int]) -> None:
    photo = picture(*size)
    oracle = v2.Compose([v2.Resize(36), v2.CenterCrop(32)])
    assert np.array_equal(View(36, 32).middle(photo), np.array(oracle(photo)))


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([0.01, 0.08, 0.5, 0.99]), st.integers(0, 2**32 - 1))
def test_a_random_box_lies_in_the_photo_and_is_no_smaller_than_allowed(
    height: int, width: int, smallest: float, seed: int
) -> None:
    top, left, h, w = random_box(height, width, smallest, np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0
    if min(height, width) > 40 and NARROWEST < width / height < WIDEST:
        # Sides are whole pixels, so both bounds hold to the rounding.
        assert (h + 1) * (w + 1) >= smallest * height * width
        assert (w - 1) / (h + 1) <= WIDEST
        assert (w + 1) / (h - 1) >= NARROWEST


def test_random_boxes_are_drawn_as_torchvision_draws_them() -> None:
    """Means of area, shape and place over many draws, ours and theirs."""
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(224)
    photo = torch.empty(3, 240, 320)
    ours_drawn, theirs_drawn = [], []
    for _ in range(4000):
        ours_drawn.append(random_box(240, 320, 0.08, generator))
        params = theirs.make_params([photo])
        theirs_drawn.append([params[key] for key in ("top", "left", "height", "width")])
    ours, oracle = np.array(ours_drawn, float), np.array(theirs_drawn, float)
    error = 4 * oracle.std(axis=0) * np.sqrt(2 / 4000)
    assert (np.abs(ours.mean(axis=0) - oracle.mean(axis=0)) < error).all()
    assert np.allclose(ours.std(axis=0), oracle.std(axis=0), rtol=0.08)


def test_a_random_part_is_that_part_of_the_photo_mirrored_half_the_time() -> None:
    photo, view = picture(60, 50), View(40, 32, smallest_crop=0.3)
    mirrored = 0
    for seed in range(100):
        part = view.random_part(photo, np.random.default_rng(seed))
        top, left, height, width = random_box(50, 60, 0.3, np.random.default_rng(seed))
        box = photo.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
        plain = np.array(box)
        assert np.array_equal(part, plain) or np.array_equal(part, plain[:, ::-1])
        mirrored += not np.array_equal(part, plain)
    assert 30 < mirrored < 70


def test_a_share_of_one_takes_the_middle_and_mirrors_nothing() -> None:
    photo, view = picture(60, 50), View(40, 32, smallest_crop=1)
    for seed in range(5):
        assert np.array_equal(view.random_part(photo, np.random.default_rng(seed)), view.middle(photo))


def test_what_is_no_photo_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    for read in (View().read_middle, lambda path: View().read_random_part(path, 0, 1, 2)):
        with pytest.raises(PhotoError, match=r"a\.jpg"):
            read(tmp_path / "a.jpg")
