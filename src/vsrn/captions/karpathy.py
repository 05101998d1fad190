"""The Karpathy JSON: which photo is in which split, and what people wrote about it.

    {"images": [{"filename": "a.jpg", "filepath": "val2014", "split": "train",
                 "sentences": [{"raw": "Two dogs play ."}, ...]}, ...]}

Flickr8K, Flickr30K and COCO are published this way; `filepath` and COCO's `cocoid` are optional and other fields are
ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import msgspec

from vsrn.errors import DataError
from vsrn.files import normal_name


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
    for image in _read_images(path):
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


def _read_images(path: Path) -> list[_Image]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Dataset).images
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a Karpathy JSON file.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{path} is not in the Karpathy layout ({error}); it must read"
            ' {"images": [{"filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}.'
        ) from error


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
