"""COCO's own caption annotations: one JSON a year and part, and lists that make splits of them.

    captions_train2014.json   {"images": [{"id", "file_name"}], "annotations": [{"image_id", "id", "caption"}]}
    captions_val2014.json
    coco_train_ids.npy        ids of annotations; likewise coco_dev_ids, coco_test_ids, coco_restval_ids

The lists are optional: without one, each JSON is a split, `train2014` as `train` and so on. A photo of
`captions_train2014.json` is looked for in the folder `train2014`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

import msgspec

from vsrn.data.region_store import map_array
from vsrn.errors import DataError
from vsrn.files import normal_name, read_json


@dataclass(frozen=True)
class CaptionedPhoto:
    """One image of the JSON.

    id        path below the image folder, with forward slashes, in Unicode's NFC form; never leads out of it
    captions  at least one, each on one line with single spaces
    cocoid    COCO's own number of the image, where the JSON says it
    """

    id: str
    captions: list[str]
    cocoid: int | None = None


class _Sentence(msgspec.Struct):
    raw: str


class _Image(msgspec.Struct):
    filename: str
    split: str
    sentences: list[_Sentence]
    filepath: str = ""
    cocoid: int | None = None


class _Dataset(msgspec.Struct):
    images: list[_Image]


def read_karpathy(path: Path | str, *, restval: bool = False) -> dict[str, list[CaptionedPhoto]]:
    """Splits of a Karpathy JSON, by name, each in the file's order.

    restval  whether COCO's `restval` images, left over from its validation set, count as `train`

    Raises `DataError` where the file is missing or laid out otherwise, where an image has no captions, an
    empty one, is listed twice in a split, or has a path that leads out of the image folder.
    """
    path = Path(path)
    splits: dict[str, list[CaptionedPhoto]] = {}
    seen: set[tuple[str, str]] = set()
    layout = 'the Karpathy layout, {"images": [{"filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}.'
    for image in read_json(path, _Dataset, f"it must be in {layout}").images:
        photo_id = safe_photo_id(image.filepath, image.filename, path)
        photo = CaptionedPhoto(photo_id, _captions(image, path), image.cocoid)
        split = "train" if restval and image.split == "restval" else image.split
        if (split, photo.id) in seen:
            raise DataError(f"{path} lists {photo.id} twice in split '{split}'; remove one of the two.")
        seen.add((split, photo.id))
        splits.setdefault(split, []).append(photo)
    if not splits:
        raise DataError(f"{path} lists no images; name a JSON in the Karpathy layout that does.")
    return splits


def safe_photo_id(folder: str, filename: str, path: Path) -> str:
    """`folder/filename` in NFC. Raises `DataError` where opening it could reach a file outside the image folder.

    path  the file that says so
    """
    joined = PurePosixPath(folder) / filename
    windows = PureWindowsPath(folder) / filename
    leads_out = joined.is_absolute() or bool(windows.anchor) or ".." in windows.parts
    photo_id = normal_name(joined.as_posix())
    one_line = photo_id.splitlines() == [photo_id.strip()] and "\0" not in photo_id
    if leads_out or not filename or not one_line:
        raise DataError(
            f"{path}: {photo_id!r} is not the name of a photo inside the image folder;"
            " write a relative path without '..' or line breaks."
        )
    return photo_id


def one_line_caption(caption: str) -> str:
    """A caption on one line with single spaces."""
    return " ".join(caption.split())


def _captions(image: _Image, path: Path) -> list[str]:
    captions = [one_line_caption(sentence.raw) for sentence in image.sentences]
    if not captions:
        raise DataError(f"{path}: {image.filename} has no captions; write one or remove the image.")
    if not all(captions):
        number = captions.index("") + 1
        raise DataError(f"{path}: caption {number} of {image.filename} is empty; write it or remove it.")
    return captions


_PART = re.compile(r"captions_((\w*?)\d*)\.json")
_LIST = re.compile(r"coco_(\w+)_ids\.npy")

_Id = Annotated[int, msgspec.Meta(ge=0)]


class _CocoImage(msgspec.Struct):
    id: _Id
    file_name: str


class _Annotation(msgspec.Struct):
    id: _Id
    image_id: _Id
    caption: str


class _Part(msgspec.Struct):
    images: list[_CocoImage]
    annotations: list[_Annotation]


# Annotation id -> the photo it is of, with this one caption.
_Sentences = dict[int, CaptionedPhoto]


def read_coco(folder: Path) -> dict[str, list[CaptionedPhoto]]:
    """Splits of a folder of COCO caption annotations, by name, photos in the order of their first caption.

    Raises `DataError` where a file is malformed, a list names an annotation that no JSON has, a caption is empty,
    or a photo has a path that leads out of the image folder.
    """
    parts = {path: _PART.fullmatch(path.name) for path in sorted(folder.glob("captions_*.json"))}
    sentences = {path: _read_part(path, found[1]) for path, found in parts.items() if found}
    if not sentences:
        raise DataError(f"{folder} holds no COCO captions: no file is named like captions_train2014.json.")
    lists = {path: _LIST.fullmatch(path.name) for path in sorted(folder.glob("coco_*_ids.npy"))}
    if not lists:
        return {found[2] or found[1]: _gather(sentences[path], path) for path, found in parts.items() if found}
    everything = {number: said for part in sentences.values() for number, said in part.items()}
    return {found[1]: _gather(_listed(path, everything), path) for path, found in lists.items() if found}


def _read_part(path: Path, subfolder: str) -> _Sentences:
    part = read_json(path, _Part, "it must be in the layout of COCO's captions.")
    photos = {image.id: safe_photo_id(subfolder, image.file_name, path) for image in part.images}
    for annotation in part.annotations:
        if annotation.image_id not in photos:
            raise DataError(f"{path}: caption {annotation.id} is of image {annotation.image_id}, which is not listed.")
    return {
        said.id: CaptionedPhoto(photos[said.image_id], [one_line_caption(said.caption)], said.image_id)
        for said in part.annotations
    }


def _listed(path: Path, sentences: _Sentences) -> _Sentences:
    """The captions that a list of annotation ids names, in its order."""
    ids = map_array(path, dims=(1,))
    if ids.dtype.kind not in "iu" or not len(ids):
        raise DataError(f"{path} must hold one row of annotation ids, whole numbers.")
    unknown = [number for number in ids.tolist() if number not in sentences]
    if unknown:
        raise DataError(
            f"{path} names {len(unknown):,} captions that no captions_*.json beside it has, such as {unknown[0]};"
            " put the annotations of train2014 and val2014 there."
        )
    return {number: sentences[number] for number in ids.tolist()}


def _gather(sentences: _Sentences, path: Path) -> list[CaptionedPhoto]:
    if not sentences:
        raise DataError(f"{path} holds no captions; get the file again.")
    for number, photo in sentences.items():
        if not photo.captions[0]:
            raise DataError(f"{path}: caption {number} is empty; remove it.")
    return joined(sentences.values())


def joined(photos: Iterable[CaptionedPhoto]) -> list[CaptionedPhoto]:
    """Each photo once, in the order of its first mention, with all that is said of it."""
    captions: dict[tuple[str, int | None], list[str]] = {}
    for photo in photos:
        captions.setdefault((photo.id, photo.cocoid), []).extend(photo.captions)
    return [CaptionedPhoto(name, said, cocoid) for (name, cocoid), said in captions.items()]


RESTVAL = "restval"


def read_annotations(path: Path | str, *, restval: bool = False) -> dict[str, list[CaptionedPhoto]]:
    """Splits by name, from a Karpathy JSON, or from a folder of COCO's caption annotations.

    restval  whether the images that COCO's `dev` and `test` left over count as `train`

    Raises `DataError` where there is nothing at the path, or what is there is malformed.
    """
    path = Path(path)
    if not path.is_dir():
        return read_karpathy(path, restval=restval)
    splits = read_coco(path)
    if restval:
        splits["train"] = joined([*splits.get("train", []), *splits.pop(RESTVAL, [])])
        if not splits["train"]:
            raise DataError(f"{path} has neither train nor restval; leave out restval.")
    return splits
