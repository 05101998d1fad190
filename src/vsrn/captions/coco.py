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
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from vsrn.captions.karpathy import CaptionedPhoto, one_line_caption, safe_photo_id
from vsrn.errors import DataError

_PART = re.compile(r"captions_((\w*?)\d*)\.json")
_LIST = re.compile(r"coco_(\w+)_ids\.npy")

_Id = Annotated[int, msgspec.Meta(ge=0)]


class _Image(msgspec.Struct):
    id: _Id
    file_name: str


class _Annotation(msgspec.Struct):
    id: _Id
    image_id: _Id
    caption: str


class _Part(msgspec.Struct):
    images: list[_Image]
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
    try:
        part = msgspec.json.decode(path.read_bytes(), type=_Part)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not in the layout of COCO's captions ({error}); get the file again.") from error
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
    try:
        # Mapped, so that a header cannot ask for more memory than the file is long.
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        # A hostile header makes numpy's parser stumble over anything.
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a readable .npy array ({reason}); it may be truncated.") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
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
