"""Which rows are one image, and which image or file an id means: everything that compares ids asks this module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from vsrn.data.kinds import PHOTO_ENDINGS
from vsrn.errors import DataError
from vsrn.files import normal_name, read_json, read_lines
from vsrn.metrics import FloatArray, IntArray

if TYPE_CHECKING:
    from vsrn.data.region_store import RegionStore

MAPPING_FILE = "id_mapping.json"
# Rows of one id are one image where they differ by less than this share of their length: half precision and bfloat16
# round by 0.4 %, and other images differ by about their whole length.
SAME_WITHIN = 0.1
_Found = TypeVar("_Found")
_COCO_NAME = re.compile(r"COCO_[a-z]+20[0-9]{2}_([0-9]{12})")
# Flickr's captions are numbered: 1000.jpg#0 to 1000.jpg#4.
NUMBER_OF_CAPTION = re.compile(r"#[0-9]+$")


def as_image_id(name: str) -> str:
    """A number without leading zeros, anything else in the Unicode form in which names are compared.

    >>> as_image_id("000000391895"), as_image_id("a.jpg")
    ('391895', 'a.jpg')
    """
    return name.lstrip("0") or "0" if name.isascii() and name.isdigit() else normal_name(name)


def coco_number(photo_id: str) -> int | None:
    """COCO's number of an image, where its file is named as COCO names files.

    >>> coco_number("val2014/COCO_val2014_000000391895.jpg"), coco_number("391895.jpg")
    (391895, None)
    """
    match = _COCO_NAME.fullmatch(PurePosixPath(photo_id).stem)
    return int(match[1]) if match else None


def read_id_mapping(folder: Path) -> dict[str, str]:
    """The file name of each id, from the `id_mapping.json` in a folder or in the one above it; empty without one.

    VSE-infinity's data has {"391895": "COCO_val2014_000000391895.jpg", ...}. Raises `DataError` for any other layout.
    """
    for path in (folder / MAPPING_FILE, folder.absolute().parent / MAPPING_FILE):
        if path.is_file():
            found = read_json(path, dict[str, str], "it must hold a file name for each id.")
            return {as_image_id(image_id.strip()): name for image_id, name in found.items()}
    return {}


class ImageNames(Generic[_Found]):
    """Finds an image by any of its names: its id, path, file name, file name without the ending, or COCO's number.

    A name that may mean two different images means neither.

    >>> names = ImageNames([("val2014/COCO_val2014_000000391895.jpg", 0), ("b.jpg", 1)])
    >>> names.find("391895"), names.find("photos/b.jpg"), names.find("b"), names.find("b.png")
    (0, 1, 1, None)
    """

    def __init__(self, images: Iterable[tuple[str, _Found]], mapping: Mapping[str, str] | None = None) -> None:
        """Take ids of images with what is to be found of each: of equal ids, the first.

        mapping  file names of ids (`read_id_mapping`), of these and of those that are asked for
        """
        self._mapping = mapping or {}
        self._exact: dict[str, _Found] = {}
        # By kind of name and name; None where several images have it.
        self._named: dict[tuple[str, str | int | None], _Found | None] = {}
        for image_id, found in images:
            self._exact.setdefault(normal_name(image_id), found)
        for image_id, found in self._exact.items():
            name = normal_name(self._mapping.get(as_image_id(image_id), image_id))
            for place, path in enumerate(_from_each_folder(name)):
                stem, ending = _cut(path)
                # Where it has an ending, also for who asks without any.
                for form in [path, f"{stem}.*"] if ending else [path]:
                    self._note("below" if place else "whole", form, found)
            coco, digits = coco_number(name), _digits(name)
            if coco is not None:
                self._note("coco", coco, found)
            elif digits is not None:
                self._note("digits", digits, found)

    def find(self, image_id: str, cocoid: int | None = None) -> _Found | None:
        """What is known of the image that an id means, or None where it is none of these or may be several.

        cocoid  COCO's number of the image, where a data set says it

        The surest name decides: the id, COCO's number, the path, a path below a folder, the number in a name of COCO's.
        """
        name = normal_name(image_id)
        if name in self._exact:
            return self._exact[name]
        name = normal_name(self._mapping.get(as_image_id(name), name))
        whole, *below = _from_each_folder(name)
        coco = coco_number(name)
        tries = [
            ("coco", cocoid),
            ("digits", cocoid),
            *(("whole", form) for form in _asked_as(whole)),
            *(("below", form) for form in _asked_as(whole)),
            *(("whole", form) for path in below for form in _asked_as(path)),
            ("coco", coco),
            ("digits", coco),
            ("coco", _digits(name)),
        ]
        return next((self._named[key] for key in tries if key in self._named), None)

    def _note(self, kind: str, name: str | int, found: _Found) -> None:
        self._named[kind, name] = None if (kind, name) in self._named else found


def _from_each_folder(name: str) -> list[str]:
    """A path, and what is left of it below each of its folders; a number as a file name without leading zeros.

    >>> _from_each_folder("val/2014/007.jpg")
    ['val/2014/7.jpg', '2014/7.jpg', '7.jpg']
    """
    *folders, file = PurePosixPath(name.replace("\\", "/")).parts or ("",)
    stem, ending = _cut(file)
    parts = [*folders, as_image_id(stem) + ending]
    return ["/".join(parts[place:]) for place in range(len(parts))]


def _cut(name: str) -> tuple[str, str]:
    """A name without its ending, and the ending of a photo, of which there is one spelling; or nothing.

    >>> _cut("a.JPEG"), _cut("mr.smith")
    (('a', '.jpg'), ('mr.smith', ''))
    """
    stem, _, ending = name.rpartition(".")
    ending = f".{ending}".lower()
    if not stem or ending not in PHOTO_ENDINGS:
        return name, ""
    return stem, {".jpeg": ".jpg", ".tiff": ".tif"}.get(ending, ending)


def _asked_as(name: str) -> list[str]:
    """The forms of a path that are looked for: as it is, and where either has no ending, without."""
    stem, ending = _cut(name)
    return [name, stem] if ending else [name, f"{name}.*"]


def _digits(name: str) -> int | None:
    """The number that a file name is, without folder and ending, or None."""
    stem = _cut(PurePosixPath(name).name)[0]
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) < 19 else None


def read_row_ids(path: Path, features: FloatArray) -> tuple[list[str], list[str]]:
    """The ids of a split of a region store: one per row, and one per caption where the file lists them so.

    path      `{split}_ids.txt`, which need not be there: an id for each row; for each caption (equal ones are one
              image; if all differ they say nothing); or for each image, where each caption has a row
    features  (num_rows, N, F)

    Raises `DataError` for any other number of ids, or an empty one.
    """
    ids = read_lines(path) if path.exists() else []
    if ids and all(NUMBER_OF_CAPTION.search(name) for name in ids):
        ids = [NUMBER_OF_CAPTION.sub("", name) for name in ids]
    if "" in ids:
        raise DataError(f"{path}, line {ids.index('') + 1}: the id is empty; write one.")
    if any("\t" in name for name in ids):
        raise DataError(f"{path} has several columns; write the id of one row alone on each line.")
    rows = len(features)
    if len(ids) in (0, rows):
        return ids, []
    captions_path = path.with_name(f"{path.name.removesuffix('_ids.txt')}_caps.txt")
    num_captions = len(read_lines(captions_path)) if captions_path.exists() else 0
    distinct = list(dict.fromkeys(ids))
    if len(ids) == num_captions and len(distinct) in (rows, num_captions):
        return (distinct, ids) if len(distinct) == rows else ([], [])
    if num_captions == rows and len(distinct) == len(ids):
        of_row = np.cumsum(~_repeats_previous(features)) - 1
        if of_row[-1] + 1 == len(ids):
            return [ids[image] for image in of_row], []
        if rows % len(ids) == 0:
            return [name for name in ids for _ in range(rows // len(ids))], []
    raise DataError(
        f"{path} has {len(ids):,} ids ({len(distinct):,} different) for {rows:,} rows of features and"
        f" {num_captions:,} captions; write one id for each row."
    )


def images_of_rows(regions: RegionStore, captions_path: Path, num_captions: int) -> tuple[IntArray, IntArray]:
    """Which rows of a store are one image: the first row of each image, and the image of each caption.

    In this order: `{split}.json` says how many captions each row has; ids of captions say whose they are; there are
    several captions to a row; or there is a row for each caption. Then rows with one id are one image, and without ids
    (or where all differ and every row repeats another) rows that hold the same regions one after another.

    Raises `DataError` where the numbers of rows and captions do not fit, or where one id is given to two images.
    """
    rows, stated = len(regions), regions.info.caption_counts(len(regions))
    everything = np.arange(rows)
    if stated is not None:
        if len(stated) != rows or sum(stated) != num_captions:
            raise DataError(
                f"{regions.folder / f'{regions.split}.json'} speaks of {sum(stated):,} captions for"
                f" {len(stated):,} images, but there are {num_captions:,} lines in {captions_path.name} and"
                f" {rows:,} images in {regions.split}_ims.npy."
            )
    elif regions.caption_ids:
        return everything, _by_id(regions.caption_ids)[1]
    elif rows == 0 or num_captions % rows:
        raise DataError(
            f"{captions_path} has {num_captions:,} captions and {regions.split}_ims.npy {rows:,} images, which do"
            f" not divide; one of them is cut short, or {regions.split}.json must say how many captions each has."
        )
    elif num_captions > rows:
        stated = [num_captions // rows] * rows
    firsts, image_of_row = _by_id(regions.ids)
    id_is_repeated = len(firsts) < len(regions.ids)
    if stated is not None:
        if id_is_repeated:
            first_of_row = firsts[image_of_row]
            row = int(np.argmax(first_of_row != everything))
            raise DataError(
                f"{regions.folder / f'{regions.split}_ids.txt'} gives the id {regions.ids[row]} to rows"
                f" {first_of_row[row]} and {row}, which are two images with captions of their own; give each image its"
                " own id."
            )
        return everything, np.repeat(everything, stated)
    if id_is_repeated:
        _check_alike(regions, firsts[image_of_row])
        return firsts, image_of_row
    # One row per caption: the field repeats an image for each of its captions, one after another.
    repeats = _repeats_previous(regions.features)
    first = np.flatnonzero(~repeats)
    if regions.ids and np.diff(first, append=rows).min() == 1:
        return everything, everything
    return first, np.cumsum(~repeats) - 1


def _by_id(ids: Sequence[str]) -> tuple[IntArray, IntArray]:
    """The first place of each id, in order, and for each place which of these it has."""
    number = {name: place for place, name in enumerate(dict.fromkeys(ids))}
    of_each = np.array([number[name] for name in ids], dtype=np.int64)
    return np.unique(of_each, return_index=True)[1], of_each


def _check_alike(regions: RegionStore, first_of_row: IntArray) -> None:
    """Raise `DataError` where a row holds other regions than the first row of its id, (num_rows,) `first_of_row`."""
    for row in np.flatnonzero(first_of_row != np.arange(len(regions))).tolist():
        first = int(first_of_row[row])
        # The first region alone tells nearly always, and costs a 36th; a detector that ran twice may have given others
        # first.
        for chosen in (slice(0, 1), slice(None)):
            ours, theirs = (
                regions.features[each][chosen].astype(np.float32).mean(axis=0, dtype=np.float32)
                for each in (row, first)
            )
            if np.linalg.norm(ours - theirs) <= SAME_WITHIN * np.linalg.norm(theirs):
                break
        else:
            raise DataError(
                f"{regions.folder / f'{regions.split}_ids.txt'} gives the id {regions.ids[row]} to rows {first} and"
                f" {row}, whose regions are different images'; give each image its own id."
            )


def _repeats_previous(features: FloatArray) -> npt.NDArray[np.bool_]:
    """(num_rows, N, F) -> (num_rows,) True where a row holds the same regions as the row before it."""
    repeats = np.zeros(len(features), dtype=bool)
    # A few numbers of the first region tell nearly all pairs of rows apart; only equal ones are read whole.
    glimpses = features[:, 0, :16]
    for row in np.flatnonzero((glimpses[1:] == glimpses[:-1]).all(axis=1)) + 1:
        repeats[row] = np.array_equal(features[row], features[row - 1])
    return repeats
