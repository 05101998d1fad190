"""Reading the Karpathy JSON: the real one, and everything that may be wrong with one."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsrn.data.annotations import CaptionedPhoto, read_karpathy
from vsrn.errors import DataError


def image(name: str, split: str = "train", captions: tuple[str, ...] = ("A dog .",), **more: Any) -> dict[str, Any]:
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


def write(folder: Path, *images: dict[str, Any]) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": list(images), "dataset": "invented"}), encoding="utf-8")
    return path


def test_the_real_flickr8k_file_reads_as_a_plain_json_reader_sees_it(shared: Path) -> None:
    path = shared / "flickr8k" / "dataset_flickr8k.json"
    splits = read_karpathy(path)
    assert {name: len(photos) for name, photos in splits.items()} == {"train": 6000, "val": 1000}
    assert all(len(photo.captions) == 5 for photos in splits.values() for photo in photos)
    raw = [entry for entry in json.loads(path.read_bytes())["images"] if entry["split"] == "val"]
    assert [photo.id for photo in splits["val"]] == [entry["filename"] for entry in raw]
    words = [sentence["raw"].split() for entry in raw for sentence in entry["sentences"]]
    assert [caption.split(" ") for photo in splits["val"] for caption in photo.captions] == words


def test_splits_keep_the_order_of_the_file_and_any_number_of_captions(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        image("b.jpg", "test", ("One .", "Two ."), filepath="val2014"),
        image("a.jpg"),
        image("c.jpg", "test"),
    )
    assert read_karpathy(path) == {
        "test": [CaptionedPhoto("val2014/b.jpg", ["One .", "Two ."]), CaptionedPhoto("c.jpg", ["A dog ."])],
        "train": [CaptionedPhoto("a.jpg", ["A dog ."])],
    }


def test_restval_is_a_split_of_its_own_unless_it_is_to_be_merged(tmp_path: Path) -> None:
    path = write(tmp_path, image("a.jpg"), image("b.jpg", "restval"), image("c.jpg"))
    assert {name: len(photos) for name, photos in read_karpathy(path).items()} == {"train": 2, "restval": 1}
    merged = read_karpathy(path, restval=True)
    assert [photo.id for photo in merged.pop("train")] == ["a.jpg", "b.jpg", "c.jpg"]
    assert merged == {}


def test_a_caption_is_one_line_with_single_spaces(tmp_path: Path) -> None:
    path = write(tmp_path, image("a.jpg", captions=("  Two\tdogs\n play\u2028here\u00a0. ",)))
    assert read_karpathy(path)["train"][0].captions == ["Two dogs play here ."]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("../secret.jpg", {}),
        ("/etc/passwd", {}),
        ("a.jpg", {"filepath": "photos/../.."}),
        ("a.jpg", {"filepath": "/etc"}),
        ("C:\\a.jpg", {}),
        ("..\\a.jpg", {}),
        ("", {}),
        ("", {"filepath": "photos"}),
        ("a.jpg\nb.jpg", {}),
        ("a\0.jpg", {}),
        (" a.jpg", {}),
    ],
)
def test_a_name_that_leads_out_of_the_image_folder_is_refused(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"dataset\.json.*inside the image folder"):
        read_karpathy(write(tmp_path, image(name, **more)))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([image("a.jpg", captions=())], "a.jpg has no captions"),
        ([image("a.jpg", captions=("One .", " \n "))], "caption 2 of a.jpg is empty"),
        ([image("a.jpg"), image("a.jpg")], "a.jpg twice in split 'train'"),
        ([], "lists no images"),
        ([{"filename": "a.jpg", "split": "train"}], "Karpathy layout"),
        ([{"file_name": "a.jpg", "id": 3}], "Karpathy layout"),
        ([{**image("a.jpg"), "sentences": [{"tokens": ["a"]}]}], "Karpathy layout"),
        ([{**image("a.jpg"), "filename": 7}], "Karpathy layout"),
    ],
)
def test_a_mistake_is_named_with_the_file(tmp_path: Path, images: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(DataError) as refusal:
        read_karpathy(write(tmp_path, *images))
    assert says in str(refusal.value)
    assert "dataset.json" in str(refusal.value)


def test_one_number_of_cocos_for_two_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives cocoid 9 to a\.jpg and b\.jpg"):
        read_karpathy(write(tmp_path, image("a.jpg", cocoid=9), image("b.jpg", cocoid=9)))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"images": [{"filename": "\xff"}]}', b"null"]
)
def test_what_is_no_such_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="Karpathy layout|UTF-16"):
        read_karpathy(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        read_karpathy(tmp_path / "nowhere.json")


@given(cut=st.integers(0, 200), garbage=st.binary(max_size=8))
def test_no_damage_gives_any_other_error(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    content = json.dumps({"images": [image("a.jpg"), image("b.jpg", filepath="x")]}).encode()
    path = tmp_path_factory.mktemp("karpathy") / "dataset.json"
    path.write_bytes(content[:cut] + garbage + content[cut + len(garbage) :])
    refusal, splits = None, {}
    try:
        splits = read_karpathy(path)
    except DataError as error:
        refusal = str(error)
    assert refusal is None or str(path) in refusal
    assert all(photo.captions for photos in splits.values() for photo in photos)


def test_a_photo_named_in_two_unicode_forms_is_one_photo(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "été.jpg") for form in ("NFC", "NFD"))
    entries = [{"filename": name, "split": "train", "sentences": [{"raw": "summer"}]} for name in (apart, composed)]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": entries[:1]}))
    assert [photo.id for photo in read_karpathy(path)["train"]] == [composed]
    path.write_text(json.dumps({"images": entries}))
    with pytest.raises(DataError, match="twice in split 'train'"):
        read_karpathy(path)
