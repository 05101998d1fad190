"""One line of a table of published features, in each of the layouts that are known -> its image and `Regions`.

    bottom-up attention      image_id  image_w  image_h  num_boxes  boxes  features
    LXMERT and its kin       img_id  img_h  img_w  objects_id  objects_conf  attrs_id  attrs_conf
                             num_boxes  boxes  features
    VinVL, Oscar             image  JSON: {"num_boxes", "features"}, or [{"rect", "class", "conf", "feature"}, ...]
    Oscar                    image  num_boxes  features

Tabs stand between the fields. Arrays are base64 of little-endian numbers: `NUMBERS` says of which type.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.data.image_ids import as_image_id
from vsrn.data.regions import RegionNames, Regions
from vsrn.errors import DataError
from vsrn.extractors.array_images import in_photo

FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_LXMERT_FIELDS = (
    *("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
# Without a head line, the number of fields tells the layout: those above, and Oscar's two.
LAYOUTS = {
    len(fields): fields
    for fields in (FIELDS, _LXMERT_FIELDS, ("image_id", "num_boxes", "features"), ("image_id", "json"))
}
NUMBERS = {"boxes": "<f4", "features": "<f4", "objects_conf": "<f4", "objects_id": "<i8", "attrs_id": "<i8"}
MAX_BOXES = 1000
_LONGEST_NAME, _LONGEST_HEAD = 300, 1000
# What LXMERT's head line calls them.
_SAME = {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h"}
_WHOLE_NUMBER = re.compile(rb"0|[1-9][0-9]{0,8}")
_AGAIN = "get the file again."
_KNOWN = (
    f"lines must read {', '.join(FIELDS)}, with tabs between, or as LXMERT's and VinVL's do (docs/data-formats.md)."
)


@dataclass(frozen=True)
class Lead:
    """What is known of a line before its regions are read; names only where it has them in place of numbers."""

    image: str
    num_boxes: int
    classes: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()


class _Object(msgspec.Struct):
    feature: str
    rect: list[float] | None = None
    conf: float | None = None
    name: str | int | None = msgspec.field(default=None, name="class")
    attributes: list[str] = []
    attr_scores: list[float] = []

    def attribute(self) -> str | None:
        """The most probable of the attributes, which is the first where no scores are there."""
        if len(self.attr_scores) == len(self.attributes) > 0:
            return self.attributes[int(np.argmax(self.attr_scores))]
        return self.attributes[0] if self.attributes else None


class _Page(msgspec.Struct):
    objects: list[_Object] | None = None
    num_boxes: int | None = None
    features: str | None = None
    image_w: float | None = None
    image_h: float | None = None


def head_of(line: bytes) -> tuple[str, ...] | None:
    """The fields that a head line names, or None where the line is no head line."""
    if len(line) > _LONGEST_HEAD:
        return None
    words = [word.strip().strip(b'"').decode(errors="replace") for word in line.split(b"\t")]
    named = tuple(_SAME.get(word, word) for word in words)
    return named if {"image_id", "features"} <= {*named} else None


def layout_of(line: bytes, place: str) -> tuple[str, ...]:
    """The fields of a file with this first line and no head line. Raises `DataError` where no layout has so many."""
    number = line.count(b"\t") + 1
    if number not in LAYOUTS:
        raise DataError(f"{place} has {number} fields, not {len(FIELDS)}; {_KNOWN}")
    return LAYOUTS[number]


def read_lead(line: bytes, layout: Sequence[str], place: str) -> Lead:
    """The image and the number of its regions; `place` is file and line number, as errors name it.

    Raises `DataError` where the line has another number of fields, or these are wrong.
    """
    values = _values(line, layout, place)
    image = bare(values["image_id"])[: _LONGEST_NAME + 1].decode(errors="replace").strip()
    name = as_image_id(image)
    if not name or not name.isprintable() or "\ufffd" in name or len(name) > _LONGEST_NAME:
        raise DataError(f"{place} does not begin with the name of an image; {_KNOWN}")
    if "json" in values:
        page = _page(values["json"], place)
        objects = page.objects or []
        attributes = frozenset(filter(None, (one.attribute() for one in objects)))
        classes = frozenset(one.name for one in objects if isinstance(one.name, str))
        number = len(objects) if page.num_boxes is None or objects else page.num_boxes
        return Lead(name, _checked(number, place), classes, attributes)
    for field in ("image_w", "image_h", "num_boxes"):
        content = values.get(field, b"1").strip()
        if not _WHOLE_NUMBER.fullmatch(content) or (field != "num_boxes" and content == b"0"):
            raise DataError(f"{place}: {field} is {content[:40].decode(errors='replace')!r}, not a whole number.")
    return Lead(name, _checked(int(values["num_boxes"]), place))


def read_line(line: bytes, layout: Sequence[str], place: str, names: RegionNames) -> Regions:
    """The regions of a line: features as they are, boxes as fractions of the photo's sides, None without its size.

    place  file and line number, as errors name it
    names  of classes and attributes, where lines have names in place of numbers

    Raises `DataError` where the line is cut short, not base64, or does not hold `num_boxes` finite boxes within the
    photo and as many finite features.
    """
    values = _values(line, layout, place)
    if "json" in values:
        return _of_page(_page(values["json"], place), place, names)
    number = read_lead(line, layout, place).num_boxes
    tables = {
        field: _table(values[field], f"{place}: its {field}", number, kind)
        for field, kind in NUMBERS.items()
        if field in values
    }
    carried: dict[str, Any] = {"boxes": None}
    if "boxes" in tables:
        if tables["boxes"].shape[1] != 4:
            raise DataError(f"{place}: its boxes have {tables['boxes'].shape[1]} numbers each, not 4; {_AGAIN}")
        if {"image_w", "image_h"} <= values.keys():
            carried["boxes"] = in_photo(tables["boxes"], int(values["image_w"]), int(values["image_h"]), place)
    for field, what in (("objects_conf", "scores"), ("objects_id", "classes"), ("attrs_id", "attributes")):
        if field in tables:
            if tables[field].shape[1] != 1:
                raise DataError(f"{place}: its {field} are {tables[field].shape[1]} numbers a box, not one; {_AGAIN}")
            carried[what] = tables[field][:, 0]
    return Regions(features=tables["features"], **carried)


def _values(line: bytes, layout: Sequence[str], place: str) -> dict[str, bytes]:
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) != len(layout):
        raise DataError(f"{place} has {len(fields)} fields, not {len(layout)}; {_KNOWN}")
    return dict(zip(layout, fields, strict=True))


def _checked(num_boxes: int, place: str) -> int:
    if not 0 <= num_boxes <= MAX_BOXES:
        raise DataError(f"{place} speaks of {num_boxes:,} boxes; more than {MAX_BOXES:,} are not read.")
    return num_boxes


def bare(field: bytes) -> bytes:
    """A field without what Python 3 writes around bytes (`b'...'`) and others around text (`"..."`)."""
    for start, end in ((b"b'", b"'"), (b'b"', b'"'), (b'"', b'"')):
        if field.startswith(start) and field.endswith(end) and len(field) > len(start):
            return field[len(start) : -len(end)]
    return field


def _table(field: bytes | str, what: str, rows: int, kind: str = "<f4") -> npt.NDArray[Any]:
    """(rows, ...) finite numbers of one field."""
    try:
        content = binascii.a2b_base64(bare(field) if isinstance(field, bytes) else field, strict_mode=True)
    except ValueError as error:
        raise DataError(f"{what} are not base64 ({error}); {_AGAIN}") from error
    size = np.dtype(kind).itemsize
    if kind == "<i8" and len(content) == 4 * rows:
        kind, size = "<i4", 4
    if not content or len(content) % (size * rows):
        raise DataError(
            f"{what} are {len(content):,} bytes, which {rows} boxes of {np.dtype(kind).name} do not fill; {_AGAIN}"
        )
    table = np.frombuffer(content, kind).reshape(rows, -1)
    if table.dtype.kind == "f" and not np.isfinite(table).all():
        raise DataError(f"{what} hold NaN or infinite numbers; {_AGAIN}")
    if table.dtype.kind == "i" and (table.min() < -1 or table.max() > np.iinfo(np.int16).max):
        raise DataError(f"{what} hold {table.min()} to {table.max()}, which number no classes; {_AGAIN}")
    return table


def _page(content: bytes, place: str) -> _Page:
    try:
        if content.lstrip()[:1] == b"[":
            return _Page(objects=msgspec.json.decode(content, type=list[_Object]))
        return msgspec.json.decode(content, type=_Page)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{place}: its JSON cannot be read ({error}); {_KNOWN}") from error


def _of_page(page: _Page, place: str, names: RegionNames) -> Regions:
    """The regions of a JSON of VinVL's: one string of all features, or an object a region."""
    what = f"{place}: its features"
    if not page.objects:
        features = _table(page.features or "", what, page.num_boxes or 0)
        return Regions(features=features, boxes=None)  # type: ignore[arg-type] # of published features they may lack
    rows = [_table(one.feature, what, 1)[0] for one in page.objects]
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"{what} are of different sizes; {_AGAIN}")
    carried: dict[str, Any] = {"boxes": None}
    rects = [one.rect or [] for one in page.objects]
    if page.image_w and page.image_h and all(len(rect) == 4 for rect in rects):
        carried["boxes"] = in_photo(np.array(rects, np.float32), page.image_w, page.image_h, place)
    if all(one.conf is not None for one in page.objects):
        carried["scores"] = np.array([one.conf for one in page.objects], np.float32)
    if names.classes:
        number_of = {name: number for number, name in enumerate(names.classes)}
        carried["classes"] = np.array([number_of.get(str(one.name), -1) for one in page.objects])
    elif all(isinstance(one.name, int) for one in page.objects):
        carried["classes"] = np.array([one.name for one in page.objects])
    if names.attributes:
        number_of = {name: number for number, name in enumerate(names.attributes)}
        carried["attributes"] = np.array([number_of.get(one.attribute() or "", -1) for one in page.objects])
    return Regions(features=np.stack(rows), **carried)
