"""Photos with captions as a split: the real ones as a plain reader sees them, and what is missing."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from vsrn.data.photo_splits import View, open_photo_split
from vsrn.data.splits import hold_out
from vsrn.errors import DataError

VIEW = View(40, 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos of one level each; one caption, two, three, four."""
    entries = []
    for number in range(4):
        Image.new("RGB", (50 + number, 60), (50 * number,) * 3).save(tmp_path / f"{number}.png")
        said = [{"raw": f"photo {number} caption {caption}"} for caption in range(number + 1)]
        entries.append({"filename": f"{number}.png", "split": "val", "sentences": said})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    return tmp_path


def test_a_split_reads_photos_by_place_and_captions_by_owner(folder: Path) -> None:
    split = open_photo_split(folder, folder / "dataset.json", "dev", VIEW)
    assert (split.name, split.num_images, split.image_ids()) == ("val", 4, ["0.png", "1.png", "2.png", "3.png"])
    for caption, owner in zip(split.captions, split.image_of_caption, strict=True):
        assert caption.startswith(f"photo {owner} ")
    pixels, counts = split.read_images(np.array([3, 0, 3]))
    assert (pixels.shape, str(pixels.dtype), counts) == ((3, 32, 32, 3), "uint8", None)
    assert pixels.max(axis=(1, 2, 3)).tolist() == pixels.min(axis=(1, 2, 3)).tolist() == [150, 0, 150]


def test_a_part_of_a_split_keeps_its_captions(folder: Path) -> None:
    split = open_photo_split(folder, folder / "dataset.json", "val", VIEW)
    (folder / "held.txt").write_text("2.png\n0.png\n")
    rest, held = hold_out(split, folder / "held.txt")
    assert (rest.image_ids(), held.image_ids()) == (["1.png", "3.png"], ["0.png", "2.png"])
    for part in (rest, held):
        assert sorted(part.captions) == sorted(c for c in split.captions if f"{c.split()[1]}.png" in part.image_ids())
        for caption, owner in zip(part.captions, part.image_of_caption, strict=True):
            assert part.image_ids()[owner] == f"{caption.split()[1]}.png"


@pytest.mark.parametrize(("in_json", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_captions_name_photos_in_any_unicode_form(
    tmp_path: Path, in_json: Literal["NFC", "NFD"], on_disk: Literal["NFC", "NFD"]
) -> None:
    Image.new("RGB", (50, 60), (100,) * 3).save(tmp_path / unicodedata.normalize(on_disk, "été.png"))
    named = unicodedata.normalize(in_json, "été.png")
    entry = {"filename": named, "split": "val", "sentences": [{"raw": "summer"}]}
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [entry]}))
    split = open_photo_split(tmp_path, tmp_path / "dataset.json", "val", VIEW)
    assert split.image_ids() == [unicodedata.normalize("NFC", "été.png")]
    assert (split.only(np.array([0])).read_images(np.array([0]))[0] == 100).all()


def test_what_is_missing_is_named(folder: Path) -> None:
    path = folder / "dataset.json"
    with pytest.raises(DataError, match="has no split 'vla'; it has val. Did you mean 'val'"):
        open_photo_split(folder, path, "vla", VIEW)
    with pytest.raises(DataError, match="there is no folder"):
        open_photo_split(folder / "none", path, "val", VIEW)
    (folder / "2.png").unlink()
    with pytest.raises(DataError, match=r"names 1 photos that .* does not have, such as 2\.png"):
        open_photo_split(folder, path, "val", VIEW)


def test_the_real_photos(shared: Path) -> None:
    folder = shared / "flickr8k"
    split = open_photo_split(folder / "images", folder / "dataset_flickr8k.json", "dev", View(224, 224))
    assert (split.num_images, len(split.captions)) == (1000, 5000)
    pixels, _ = split.read_images(np.array([17, 3]))
    for row, image in enumerate((17, 3)):
        assert np.array_equal(
            pixels[row], np.asarray(Image.open(folder / "images" / split.image_ids()[image]).convert("RGB"))
        )
