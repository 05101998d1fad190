"""Captions of photos in files as people have them, told apart by their content; `read_annotations` reads them all.

dataset_coco.json        Karpathy's {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
captions_train2014.json  COCO's {"images": [{"id", "file_name"}], "annotations": [{"image_id", "id", "caption"}]}
annotations/             a folder of these, and optional lists such as coco_train_ids.npy that make splits of them
captions.csv, ...        `vsrn.data.caption_tables`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

import msgspec

from vsrn.data.caption_tables import CaptionRow, fields_of, is_table, read_table
from vsrn.data.region_store import SPLIT_ALIASES, map_array
from vsrn.errors import DataError, did_you_mean
from vsrn.files import normal_name, read_json

RESTVAL = "restval"
_PART = re.compile(r"captions_((\w*?)\d*)\.json")
_LIST = re.compile(r"coco_(\w+)_ids\.npy")
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|dev|test)(?![a-z])")
_Id = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class CaptionedPhoto:
    """One image with its captions.

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

    Raises `DataError` where the file is missing or laid out otherwise, or where an image has no captions, an empty one,
    another's number, a path that leads out of the image folder, or is listed twice in a split.
    """
    path = Path(path)
    splits: dict[str, dict[str, CaptionedPhoto]] = {}
    numbered: dict[int, str] = {}
    layout = 'the Karpathy layout, {"images": [{"filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}.'
    for image in read_json(path, _Dataset, f"it must be in {layout}").images:
        photo_id = safe_photo_id(image.filepath, image.filename, path)
        photo = CaptionedPhoto(photo_id, _captions(image, path), image.cocoid)
        split = "train" if restval and image.split == RESTVAL else image.split
        if splits.setdefault(split, {}).setdefault(photo_id, photo) is not photo:
            raise DataError(f"{path} lists {photo.id} twice in split '{split}'; remove one.")
        if photo.cocoid is not None and numbered.setdefault(photo.cocoid, photo.id) != photo.id:
            raise DataError(f"{path} gives cocoid {photo.cocoid} to {numbered[photo.cocoid]} and {photo.id}; mend one.")
    if not splits:
        raise DataError(f"{path} lists no images; name a JSON in the Karpathy layout that does.")
    return {split: list(photos.values()) for split, photos in splits.items()}


def safe_photo_id(folder: str, filename: str, path: Path) -> str:
    """`folder/filename` in NFC, which the file `path` names. Raises `DataError` where it may lead out of the folder."""
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


def _captions(image: _Image, path: Path) -> list[str]:
    captions = [" ".join(sentence.raw.split()) for sentence in image.sentences]
    if not captions:
        raise DataError(f"{path}: {image.filename} has no captions; write one or remove the image.")
    if not all(captions):
        number = captions.index("") + 1
        raise DataError(f"{path}: caption {number} of {image.filename} is empty; write it or remove it.")
    return captions


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

    Without a list, each JSON is a split, `train2014` as `train`, of photos in a folder `train2014`. Raises `DataError`
    where a file is malformed or a list names an annotation that no JSON has.
    """
    # COCO's archive unpacks to a folder of this name.
    folder = folder / "annotations" if (folder / "annotations").is_dir() else folder
    paths = sorted(folder.iterdir())
    parts = {path: found for path in paths if (found := _PART.fullmatch(path.name))}
    sentences = {path: _read_part(path, found[1]) for path, found in parts.items()}
    if not sentences:
        raise DataError(f"{folder} holds no COCO captions: no file is named like captions_train2014.json.")
    lists = {path: found[1] for path in paths if (found := _LIST.fullmatch(path.name))}
    if not lists:
        return {found[2] or found[1]: _gather(sentences[path], path) for path, found in parts.items()}
    return {split: _gather(_listed(path, sentences), path) for path, split in lists.items()}


def is_coco_folder(folder: Path) -> bool:
    """Whether a folder holds COCO's caption annotations, by itself or in `annotations`, and no region store."""
    found = any(next(folder.glob(f"{place}captions_*.json"), None) for place in ("", "annotations/"))
    return found and next(folder.glob("*_ims.npy"), None) is None


def _read_part(path: Path, subfolder: str) -> _Sentences:
    part = read_json(path, _Part, "it must be in the layout of COCO's captions.")
    photos: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for image in part.images:
        name = safe_photo_id(subfolder, image.file_name, path)
        if photos.setdefault(image.id, name) != name:
            raise DataError(f"{path} lists image {image.id} twice, as {photos[image.id]} and {name}; number them anew.")
        if numbers.setdefault(name, image.id) != image.id:
            raise DataError(f"{path} lists {name} twice, as image {numbers[name]} and {image.id}; remove one.")
    sentences: _Sentences = {}
    for said in part.annotations:
        if said.image_id not in photos:
            raise DataError(f"{path}: caption {said.id} is of image {said.image_id}, which is not listed.")
        photo = CaptionedPhoto(photos[said.image_id], [" ".join(said.caption.split())], said.image_id)
        if sentences.setdefault(said.id, photo) != photo:
            raise DataError(f"{path} has two captions with the id {said.id}; number them anew.")
    return sentences


def _listed(path: Path, parts: Mapping[Path, _Sentences]) -> _Sentences:
    """The captions that a list of annotation ids names, in its order."""
    ids = map_array(path, dims=(1,))
    if ids.dtype.kind not in "iu" or not len(ids):
        raise DataError(f"{path} must hold one row of annotation ids, whole numbers.")
    holders = {number: [part for part in parts if number in parts[part]] for number in ids.tolist()}
    unknown = [number for number, found in holders.items() if not found]
    if unknown:
        raise DataError(
            f"{path} names {len(unknown):,} captions that no captions_*.json beside it has, such as {unknown[0]};"
            " put the annotations of train2014 and val2014 there."
        )
    for number, found in holders.items():
        if len(found) > 1:
            raise DataError(
                f"{path} names caption {number}, but {found[0].name} and {found[1].name} both have a caption with that"
                " id; number one of the two files anew."
            )
    return {number: parts[found[0]][number] for number, found in holders.items()}


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


def read_annotations(
    path: Path | str, *, restval: bool = False, name: str = "train"
) -> dict[str, list[CaptionedPhoto]]:
    """Splits by name, from any file or folder of captions that this module lists.

    restval  whether the images that COCO's `dev` and `test` left over count as `train`
    name     what the one split of a file is called that names none; of a JSON of COCO's, its file name may

    Raises `DataError` where there is nothing at the path, or what is there is malformed.
    """
    path = Path(path)
    if path.is_dir():
        splits = read_coco(path)
    elif is_table(path):
        splits = _by_split(read_table(path), path, name)
    elif "annotations" in fields_of(path):
        found, named = _PART.fullmatch(path.name), _SPLIT_IN_NAME.search(path.stem)
        subfolder, split = (found[1], found[2] or found[1]) if found else ("", named[1] if named else name)
        splits = {split: _gather(_read_part(path, subfolder), path)}
    else:
        return read_karpathy(path, restval=restval)
    if restval and (path.is_dir() or RESTVAL in splits):
        splits["train"] = joined([*splits.get("train", []), *splits.pop(RESTVAL, [])])
        if not splits["train"]:
            raise DataError(f"{path} has neither train nor restval; leave out restval.")
    return splits


def choose_split(path: Path | str, splits: Mapping[str, list[CaptionedPhoto]], split: str) -> str:
    """The split's name among those of a path; `val` and `dev` stand for each other. Raises `DataError` without any."""
    name = next((known for known in (split, SPLIT_ALIASES.get(split, split)) if known in splits), None)
    if name is None:
        listed = ", ".join(sorted(splits))
        raise DataError(f"{path} has no split '{split}'; it has {listed}.{did_you_mean(split, splits)}")
    return name


def _by_split(rows: Iterable[CaptionRow], path: Path, name: str) -> dict[str, list[CaptionedPhoto]]:
    """The rows of a table as splits of photos, in the order of their first captions."""
    splits: dict[str, list[CaptionedPhoto]] = {}
    for row in rows:
        photo_id = safe_photo_id("", row.image, path)
        captions = [" ".join(caption.split()) for caption in row.captions]
        if not captions or not all(captions):
            raise DataError(f"{row.where}: a caption of {photo_id} is empty; write it or remove it.")
        splits.setdefault(row.split or name, []).append(CaptionedPhoto(photo_id, captions))
    if not splits:
        raise DataError(f"{path} holds no captions; get the file again.")
    return {split: joined(photos) for split, photos in splits.items()}
