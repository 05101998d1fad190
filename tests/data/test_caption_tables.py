"""Captions as people have them: every form of the same few sentences reads alike, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsrn.cli import main
from vsrn.data.annotations import read_annotations
from vsrn.data.splits import open_split
from vsrn.errors import DataError

SAID = {"a.jpg": ["A dog, running .", 'Two "dogs"'], "b c.jpg": ["A cat | sleeps"]}
PAIRS = [(image, caption) for image, captions in SAID.items() for caption in captions]

FORMS = {
    "flickr.token": "".join(f"{image}#{number}\t{said}\n" for number, (image, said) in enumerate(PAIRS)),
    "plain.tsv": "".join(f"{image}\t{said}\n" for image, said in PAIRS),
    "pandas.tsv": 'image\tcaption\na.jpg\tA dog, running .\na.jpg\t"Two ""dogs"""\nb c.jpg\tA cat | sleeps\n',
    "kaggle.txt": 'image,caption\r\na.jpg,"A dog, running ."\r\na.jpg,"Two ""dogs"""\r\nb c.jpg,A cat | sleeps\r\n\r\n',
    "unquoted.csv": 'image,caption\na.jpg,A dog, running .\na.jpg,"Two ""dogs"""\nb c.jpg,A cat | sleeps\n',
    "headless.csv": 'a.jpg,"A dog, running ."\na.jpg,"Two ""dogs"""\nb c.jpg,A cat | sleeps\n',
    "numbered.csv": 'a.jpg,0,"A dog, running ."\na.jpg,1,"Two ""dogs"""\nb c.jpg,0,A cat | sleeps\n',
    "indexed.csv": ',Caption,File Name\n0,"A dog, running .",a.jpg\n1,"Two ""dogs""",a.jpg\n2,A cat | sleeps,b c.jpg\n',
    "excel.csv": 'image;caption\na.jpg;A dog, running .\na.jpg;"Two ""dogs"""\nb c.jpg;A cat | sleeps\n',
    "lists.csv": 'raw,filename\n"[""A dog, running ."", ""Two \\""dogs\\""""]",a.jpg\n"[""A cat | sleeps""]",b c.jpg\n',
    "records.json": json.dumps([{"image": image, "caption": said} for image, said in PAIRS]),
    "lists.json": json.dumps([{"image": image, "caption": said} for image, said in SAID.items()]),
    "table.json": json.dumps(SAID),
    "metadata.jsonl": "".join(json.dumps({"file_name": image, "text": said}) + "\n" for image, said in PAIRS),
    "karpathy.json": json.dumps(
        {
            "images": [
                {"filename": image, "split": "train", "sentences": [{"raw": said} for said in captions]}
                for image, captions in SAID.items()
            ]
        }
    ),
    "coco.json": json.dumps(
        {
            "images": [{"id": number, "file_name": image} for number, image in enumerate(SAID)],
            "annotations": [
                {"id": number, "image_id": list(SAID).index(image), "caption": said}
                for number, (image, said) in enumerate(PAIRS)
            ],
        }
    ),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_reads_alike(tmp_path: Path, name: str, mark: bytes) -> None:
    (tmp_path / name).write_bytes(mark + FORMS[name].encode())
    ((split, photos),) = read_annotations(tmp_path / name).items()
    assert (split, {photo.id: photo.captions for photo in photos}) == ("train", SAID)
    if name != "karpathy.json":
        assert list(read_annotations(tmp_path / name, name="mine")) == ["mine"]


def test_flickr30k_results_with_their_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("image_name| comment_number| comment\na.jpg| 0| A man | a dog .\na.jpg| 4   A dog runs .\n")
    (photo,) = read_annotations(path)["train"]
    assert photo.captions == ["A man | a dog .", "A dog runs ."]


def test_a_column_names_the_split(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("filename,split,caption\na.jpg,train,A dog\nb.jpg,validation,A cat\nc.jpg,restval,A cow\n")
    splits = {split: [photo.id for photo in photos] for split, photos in read_annotations(path).items()}
    assert splits == {"train": ["a.jpg"], "val": ["b.jpg"], "restval": ["c.jpg"]}
    assert [photo.id for photo in read_annotations(path, restval=True)["train"]] == ["a.jpg", "c.jpg"]


WRONG: dict[str, tuple[str | bytes, str]] = {
    "empty.csv": ("image,caption\na.jpg,A dog\nb.jpg,\n", r"line 3: a caption of b\.jpg is empty"),
    "alone.csv": ("a dog\n", "line 1 does not name an image and a caption"),
    "head.csv": ("image,caption\n", "holds no captions"),
    "out.csv": ("image,caption\n../a.jpg,A dog\n", "not the name of a photo inside"),
    "open.csv": ('image,caption\na.jpg,"A dog\nb.jpg,A cat\n', "line 3: .*a quote in a quoted field is written twice"),
    "more.csv": ("caption,image\nA dog, running,a.jpg\n", "line 2 has 3 fields, but the head line has 2"),
    "wide.csv": ("image,caption\n".encode("utf-16"), "is UTF-16 text; save the file as UTF-8"),
    "latin.csv": (b"image,caption\na.jpg,caf\xe9\n", "line 2: not UTF-8"),
    "records.json": ('[{"image": "a.jpg"}]', "record 1 is no image with its caption"),
    "numbers.json": ('{"a.jpg": 5}', "record 1 is no image with its caption"),
    "broken.jsonl": ('{"image": ', "cannot be read"),
    "nothing.json": ("", "Karpathy layout"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    content, says = WRONG[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=says) as refusal:
        read_annotations(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value)


@pytest.mark.parametrize("name", ["flickr.token", "kaggle.txt", "coco.json"])
def test_a_store_is_extracted_with_any_of_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name])
    for place, photo in enumerate(SAID):
        (tmp_path / "photos" / "deep").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (90 * place, 50, 50)).save(tmp_path / "photos" / "deep" / photo)
    arguments = ["extract", str(tmp_path / "photos"), "--captions", str(tmp_path / name), "-o", str(tmp_path / "store")]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--splits", "mine"])
    assert done.value.code == 0
    split = open_split(tmp_path / "store", "mine")
    assert dict(zip(split.image_ids(), split.captions_by_image(), strict=True)) == SAID
    assert np.isfinite(split.read_images(np.arange(2))[0]).all()
