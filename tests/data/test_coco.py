"""COCO's own annotations: splits by lists of caption ids, what is left over, and everything that may be wrong."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsrn.data.annotations import CaptionedPhoto, read_annotations
from vsrn.errors import DataError

# Caption ids are scattered over the photos, as in the real files.
TRAIN = {"images": {9: "a.jpg", 25: "b.jpg"}, "captions": [(3, 9, "A dog ."), (1, 25, "Two\n cats"), (8, 9, "It runs")]}
VAL = {"images": {42: "c.jpg", 7: "d.jpg"}, "captions": [(20, 42, "A boat"), (21, 7, "A tree"), (22, 42, "Water")]}


def write(folder: Path, name: str, part: dict[str, Any]) -> None:
    content = {
        "info": {"year": 2014},
        "images": [{"id": number, "file_name": file, "height": 5} for number, file in part["images"].items()],
        "annotations": [{"id": n, "image_id": image, "caption": said} for n, image, said in part["captions"]],
    }
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "captions_train2014.json", TRAIN)
    write(tmp_path, "captions_val2014.json", VAL)
    (tmp_path / "instances_val2014.json").write_text("not captions")
    return tmp_path


def split_by(folder: Path, **lists: list[int]) -> None:
    for split, ids in lists.items():
        np.save(folder / f"coco_{split}_ids.npy", np.array(ids))


def test_without_lists_each_file_is_a_split(folder: Path) -> None:
    assert read_annotations(folder) == {
        "train": [
            CaptionedPhoto("train2014/a.jpg", ["A dog .", "It runs"], 9),
            CaptionedPhoto("train2014/b.jpg", ["Two cats"], 25),
        ],
        "val": [
            CaptionedPhoto("val2014/c.jpg", ["A boat", "Water"], 42),
            CaptionedPhoto("val2014/d.jpg", ["A tree"], 7),
        ],
    }


def test_lists_of_caption_ids_make_the_splits(folder: Path) -> None:
    split_by(folder, train=[1, 3], dev=[20], restval=[21, 22])
    splits = read_annotations(folder)
    assert splits["train"] == [
        CaptionedPhoto("train2014/b.jpg", ["Two cats"], 25),
        CaptionedPhoto("train2014/a.jpg", ["A dog ."], 9),
    ]
    assert splits["dev"] == [CaptionedPhoto("val2014/c.jpg", ["A boat"], 42)]
    assert [photo.id for photo in splits["restval"]] == ["val2014/d.jpg", "val2014/c.jpg"]


def test_restval_joins_train_and_a_photo_in_both_stays_one(folder: Path) -> None:
    split_by(folder, train=[3, 20], restval=[22, 21], dev=[1])
    splits = read_annotations(folder, restval=True)
    assert splits.keys() == {"train", "dev"}
    assert [(photo.id, photo.captions) for photo in splits["train"]] == [
        ("train2014/a.jpg", ["A dog ."]),
        ("val2014/c.jpg", ["A boat", "Water"]),
        ("val2014/d.jpg", ["A tree"]),
    ]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a way out": ({"images": {1: "../../x.jpg"}, "captions": [(1, 1, "A dog")]}, "not the name of a photo inside"),
    "an absolute path": ({"images": {1: "/etc/passwd"}, "captions": [(1, 1, "A dog")]}, "not the name of a photo"),
    "no such image": ({"images": {1: "a.jpg"}, "captions": [(1, 2, "A dog")]}, "caption 1 is of image 2, which is not"),
    "nothing said": ({"images": {1: "a.jpg"}, "captions": [(5, 1, " \n")]}, "caption 5 is empty"),
    "no captions": ({"images": {1: "a.jpg"}, "captions": []}, "holds no captions"),
    "a negative id": ({"images": {-1: "a.jpg"}, "captions": [(5, -1, "A dog")]}, "must be in the layout of COCO's"),
}


@pytest.mark.parametrize(("part", "complaint"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_wrong_is_said(tmp_path: Path, part: dict[str, Any], complaint: str) -> None:
    write(tmp_path, "captions_train2014.json", part)
    with pytest.raises(DataError, match=complaint):
        read_annotations(tmp_path)


@pytest.mark.parametrize("ids", [np.zeros((2, 2), np.int64), np.array([1.5]), np.array([], np.int64), {"a": 1}])
def test_a_list_of_anything_else_is_refused_and_not_unpickled(folder: Path, ids: Any) -> None:
    np.save(folder / "coco_train_ids.npy", ids, allow_pickle=True)
    with pytest.raises(DataError, match="coco_train_ids"):
        read_annotations(folder)


@pytest.mark.parametrize("shape", ["(-3,)", f"({2**40},)", f"({10**30},)", "9" * 5000, "(" * 9000])
def test_a_list_whose_header_lies_is_refused(folder: Path, shape: str) -> None:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}".encode()
    content = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(24)
    (folder / "coco_train_ids.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"coco_train_ids\.npy is not a readable \.npy array"):
        read_annotations(folder)


def test_photos_are_named_in_one_unicode_form(tmp_path: Path) -> None:
    images = {1: unicodedata.normalize("NFD", "été.jpg")}
    write(tmp_path, "captions_train2014.json", {"images": images, "captions": [(1, 1, "summer")]})
    (photo,) = read_annotations(tmp_path)["train"]
    assert photo.id == "train2014/" + unicodedata.normalize("NFC", "été.jpg")


def test_a_list_of_captions_that_are_elsewhere_names_one(folder: Path) -> None:
    split_by(folder, train=[1, 77])
    with pytest.raises(DataError, match="names 1 captions that no captions_.*such as 77"):
        read_annotations(folder)


def test_a_file_by_itself_and_the_folder_of_the_archive_are_read(folder: Path) -> None:
    splits = read_annotations(folder)
    assert read_annotations(folder / "captions_val2014.json") == {"val": splits["val"]}
    (folder / "annotations").mkdir()
    for path in folder.glob("*.json"):
        path.rename(folder / "annotations" / path.name)
    assert read_annotations(folder) == splits


def test_ids_that_repeat_are_refused_by_name(folder: Path) -> None:
    write(folder, "captions_val2014.json", {**VAL, "captions": [(3, 42, "A boat"), *VAL["captions"]]})
    # Each file is a split of its own, so nothing is confused.
    assert read_annotations(folder)["val"][0].captions == ["A boat", "A boat", "Water"]
    split_by(folder, train=[1, 3])
    with pytest.raises(DataError, match="names caption 3, but captions_train2014.json and captions_val2014.json both"):
        read_annotations(folder)
    write(folder, "captions_val2014.json", {**VAL, "captions": [(20, 7, "A pond"), *VAL["captions"]]})
    with pytest.raises(DataError, match="has two captions with the id 20"):
        read_annotations(folder)
    write(folder, "captions_val2014.json", {"images": {42: "c.jpg", 7: "c.jpg"}, "captions": VAL["captions"]})
    with pytest.raises(DataError, match="lists val2014/c.jpg twice, as image 42 and 7"):
        read_annotations(folder)


def test_an_empty_folder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file is named like captions_train2014\.json"):
        read_annotations(tmp_path)


@pytest.mark.parametrize("shape", ["(-1,)", "(99999999999999999999,)", "(9000000000000000,)", "(" * 1000])
def test_a_list_of_a_hostile_shape_is_one_sentence(shape: str, folder: Path) -> None:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(2000).encode()
    length = len(header).to_bytes(2, "little")
    (folder / "coco_train_ids.npy").write_bytes(b"\x93NUMPY\x01\x00" + length + header + b"\0" * 64)
    with pytest.raises(DataError, match=r"coco_train_ids\.npy (is not a readable|must hold)"):
        read_annotations(folder)
