"""Which rows are one image, and which image or file an id means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vsrn.data.image_ids import ImageNames
from vsrn.data.listing import PhotoNames
from vsrn.data.splits import Split, hold_out, open_split
from vsrn.errors import DataError
from vsrn.metrics import FloatArray

IMAGES = np.random.default_rng(0).normal(size=(3, 2, 4)).astype("float32")


def split_of(folder: Path, features: FloatArray, num_captions: int, ids: list[str]) -> Split:
    """A split whose captions are numbers."""
    np.save(folder / "test_ims.npy", features)
    (folder / "test_caps.txt").write_text("".join(f"{number}\n" for number in range(num_captions)))
    (folder / "test_ids.txt").write_text("".join(f"{name}\n" for name in ids))
    return open_split(folder, "test")


def said(split: Split) -> dict[str, list[int]]:
    """Image id -> its captions."""
    return dict(zip(split.image_ids(), [[int(each) for each in of] for of in split.captions_by_image()], strict=True))


def noisy(rows: list[int]) -> FloatArray:
    """A row for each of these images, none equal to another to the bit."""
    noise = np.random.default_rng(1).normal(size=(len(rows), 2, 4)).astype("float32")
    features: FloatArray = IMAGES[rows] + 1e-6 * noise
    return features


def test_rows_of_one_id_are_one_image_wherever_they_lie_and_whatever_their_last_bits(tmp_path: Path) -> None:
    split = split_of(tmp_path, noisy([0, 0, 1, 2, 1]), 5, ["a", "a", "b", "c", "b"])
    assert said(split) == {"a": [0, 1], "b": [2, 4], "c": [3]}
    assert split.rows.tolist() == [0, 2, 3]


def test_rows_of_different_ids_are_different_images_though_they_look_alike(tmp_path: Path) -> None:
    assert said(split_of(tmp_path, IMAGES[[0, 0, 1]], 3, ["a", "b", "c"])) == {"a": [0], "b": [1], "c": [2]}


def test_ids_of_captions_say_which_image_is_theirs(tmp_path: Path) -> None:
    # Not every image has as many.
    assert said(split_of(tmp_path, IMAGES, 5, ["a", "a", "b", "c", "c"])) == {"a": [0, 1], "b": [2], "c": [3, 4]}
    numbered = ["a.jpg#0", "a.jpg#1", "b.jpg#0", "b.jpg#1", "c.jpg#0", "c.jpg#1"]
    assert list(said(split_of(tmp_path, IMAGES, 6, numbered))) == ["a.jpg", "b.jpg", "c.jpg"]


def test_numbers_of_captions_say_nothing_of_images(tmp_path: Path) -> None:
    annotations = ["31", "32", "33", "34", "35", "36"]
    assert said(split_of(tmp_path, IMAGES, 6, annotations)) == {"0": [0, 1], "1": [2, 3], "2": [4, 5]}
    assert open_split(tmp_path, "test").has_ids is False
    assert split_of(tmp_path, IMAGES[[0, 0, 1, 1, 2, 2]], 6, annotations).num_images == 3


@pytest.mark.parametrize("rows", [[0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2]])
def test_an_id_for_each_image_stands_for_all_its_rows(tmp_path: Path, rows: list[int]) -> None:
    expected = {name: [place for place, row in enumerate(rows) if "abc"[row] == name] for name in "abc"}
    assert said(split_of(tmp_path, IMAGES[rows], 6, ["a", "b", "c"])) == expected
    if rows[3] == 1:
        assert said(split_of(tmp_path, noisy(rows), 6, ["a", "b", "c"])) == expected


REFUSED = {
    "one id for two images": (3, ["a", "b", "a"], r"test_ids\.txt gives the id a to rows 0 and 2"),
    "one id for two images with captions of their own": (6, ["a", "b", "a"], "gives the id a to rows 0 and 2"),
    "too few ids": (6, ["a", "b"], r"has 2 ids \(2 different\) for 3 rows of features and 6 captions"),
    "too many ids": (6, list("abcd"), "has 4 ids"),
    "ids of captions of other images": (6, list("aabbbb"), r"has 6 ids \(2 different\) for 3 rows"),
    "two columns": (6, ["0\ta", "1\tb", "2\tc"], "has several columns"),
    "an empty id": (6, ["a", "", "c"], "line 2: the id is empty"),
}


@pytest.mark.parametrize(("num_captions", "ids", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_ids_that_cannot_be_right_are_refused(tmp_path: Path, num_captions: int, ids: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        split_of(tmp_path, IMAGES, num_captions, ids)


FOUND = [
    ("val2014/COCO_val2014_000000391895.jpg", None, "val2014/COCO_val2014_000000391895.jpg"),
    ("COCO_val2014_000000391895.jpg", None, "val2014/COCO_val2014_000000391895.jpg"),
    ("391895", None, "val2014/COCO_val2014_000000391895.jpg"),
    ("000000391895", None, "val2014/COCO_val2014_000000391895.jpg"),
    ("x.jpg", 391895, "val2014/COCO_val2014_000000391895.jpg"),
    ("COCO_train2014_000000000009.jpg", 9, "train2017/000000000009.jpg"),
    ("1001", None, "flickr/1001.jpg"),
    ("1001.jpg", None, "flickr/1001.jpg"),
    ("images/flickr/1001.jpeg", None, "flickr/1001.jpg"),
    ("flickr/1001.jpeg", None, "flickr/1001.jpg"),
    ("photos/my beach.jpg", None, "my beach.JPG"),
    ("my beach", None, "my beach.JPG"),
    ("images\\flickr\\1001.jpg", None, "flickr/1001.jpg"),
    # May be two images, lies in another folder, or is another kind of file.
    ("twice", None, None),
    ("other/a.jpg", None, None),
    ("1001.png", None, None),
    ("12", None, None),
]


@pytest.mark.parametrize(("asked", "cocoid", "expected"), FOUND)
def test_a_file_is_found_by_any_of_its_names_and_no_other_is(
    tmp_path: Path, asked: str, cocoid: int | None, expected: str | None
) -> None:
    names = {name for _, _, name in FOUND if name} | {"one/a.jpg", "one/twice.jpg", "two/twice.png", "notes/12.txt"}
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert PhotoNames(tmp_path).find(asked, cocoid) == (None if expected is None else tmp_path / expected)
    assert ImageNames((name, name) for name in names).find(asked, cocoid) == expected or expected is None


def test_a_link_to_a_photo_elsewhere_is_found_and_a_link_to_a_folder_is_not_searched(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").mkdir()
    for number in (9, 11):
        (tmp_path / "elsewhere" / f"COCO_val2014_{number:012}.jpg").write_bytes(b"")
    link = tmp_path / "photos" / "COCO_val2014_000000000009.jpg"
    link.symlink_to(tmp_path / "elsewhere" / link.name)
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    names = PhotoNames(tmp_path / "photos")
    assert (names.find("9"), names.find("11")) == (link, None)


def test_a_mapping_of_ids_decides(tmp_path: Path) -> None:
    for name in ("0.jpg", "1000.jpg"):
        (tmp_path / name).write_bytes(b"")
    names = PhotoNames(tmp_path, {"0": "1000.jpg", "1": "2000.jpg"})
    assert names.find("0") == tmp_path / "1000.jpg"
    assert names.find("1") is None
    assert ImageNames([("0", "first")], {"0": "1000.jpg"}).find("x/1000.jpg") == "first"


def test_a_mapping_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "id_mapping.json").write_text(json.dumps({"0": 7}))
    split = split_of(tmp_path, IMAGES, 3, ["a", "b", "c"])
    (tmp_path / "list.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"id_mapping\.json cannot be read.*a file name for each id"):
        hold_out(split, tmp_path / "list.txt")
