"""The arrays that somebody's file has of one image -> `Regions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vsrn.data.regions import Regions, native
from vsrn.errors import DataError
from vsrn.extractors.array_files import ArrayEntry
from vsrn.metrics import FloatArray

# What an image's arrays are called: by py-bottom-up-attention and its kin, LXMERT, and others.
ALIASES = {
    "features": ("features", "feature", "feats", "feat", "x", "image_features", "img_features"),
    "boxes": ("boxes", "bbox", "bboxes", "image_bb"),
    "width": ("image_w", "img_w", "image_width", "width"),
    "height": ("image_h", "img_h", "image_height", "height"),
    "count": ("num_boxes", "num_bbox"),
    "ids": ("image_ids", "image_id", "img_ids", "ids"),
    "spans": ("pos_boxes",),
    "scores": ("objects_conf", "scores", "conf"),
    "classes": ("objects_id", "classes", "objects"),
    "attributes": ("attrs_id", "attributes", "attrs"),
}
MEANING = {alias: what for what, aliases in ALIASES.items() for alias in aliases}
# Boxes as fractions may be rounded beyond 1, and those in pixels reach out of their photo by one here and there.
_LARGEST_FRACTION = 1.001
_PIXELS_OUTSIDE = 1.5

# The arrays of one image by what they are: keys of `ALIASES`.
Fields = Mapping[str, ArrayEntry]


def num_regions_of(fields: Fields, place: str) -> int:
    """How many regions an image has. Raises `DataError` where it has no features, or they are of a wrong shape."""
    if "features" not in fields:
        raise DataError(f"{place} has no features; its array must be called {' or '.join(ALIASES['features'][:5])}.")
    entry = fields["features"]
    if entry.objects:
        raise DataError(
            f"{place} holds Python objects, which only a pickle can hold; they are not read, because a pickle can run"
            " code. Write features as arrays of float32."
        )
    shape = entry.shape[1:] if len(entry.shape) == 3 and entry.shape[0] == 1 else entry.shape
    if len(shape) not in (1, 2) or not all(shape[1:]):
        raise DataError(f"{place} has features of shape {entry.shape}; they must be (regions, numbers).")
    if len(shape) == 1:
        return 1
    count = int(shape[1] if _lies_across(shape, fields) else shape[0])
    return min(count, int(fields["count"].read())) if "count" in fields and not fields["count"].shape else count


def _lies_across(shape: tuple[int, ...], fields: Fields) -> bool:
    """Whether features are (numbers, regions), as some files of bottom-up attention have them: the boxes tell."""
    boxes = fields["boxes"].shape if "boxes" in fields else ()
    return len(boxes) == 2 and boxes[1] == 4 and boxes[0] != shape[0] and boxes[0] == shape[1]


def regions_of(fields: Fields, place: str) -> Regions:
    """The regions of an image; boxes become fractions of the photo's sides, and None where its size is not said.

    Raises `DataError`, naming `place`, where arrays do not fit each other, or hold NaN or infinite numbers.
    """
    count = num_regions_of(fields, place)
    features = native(fields["features"].read())
    if features.dtype.kind != "f":
        raise DataError(f"{place} has features of type {features.dtype}; they must be floats.")
    features = features.reshape(-1, features.shape[-1])
    features = features.T if _lies_across(features.shape, fields) else features
    if not np.isfinite(features).all():
        raise DataError(f"{place} has features that are NaN or infinite; extract that image again.")
    boxes = _fractions(fields, place)
    if boxes is not None and len(boxes) < count:
        raise DataError(f"{place} has {len(features):,} features and {len(boxes):,} boxes; get the file again.")
    more: dict[str, Any] = {"boxes": None if boxes is None else boxes[:count]}
    for what in ("scores", "classes", "attributes"):
        values = native(fields[what].read()) if what in fields and not fields[what].objects else None
        # What has more than one number of each region is something else of that name.
        if values is not None and values.shape == (len(features),) and (what == "scores") == (values.dtype.kind == "f"):
            more[what] = values[:count]
    return Regions(features=features[:count], **more)


def _fractions(fields: Fields, place: str) -> FloatArray | None:
    if "boxes" not in fields or fields["boxes"].objects:
        return None
    boxes = native(fields["boxes"].read()).astype(np.float32)
    if boxes.ndim == 3 and len(boxes) == 1:
        boxes = boxes[0]
    if boxes.ndim != 2 or boxes.shape[1] < 4:
        raise DataError(f"{place} has boxes of shape {boxes.shape}; they must be (regions, 4).")
    boxes = boxes[:, :4]
    if boxes.max(initial=0) <= _LARGEST_FRACTION:
        return in_photo(boxes, 1, 1, place, outside=_LARGEST_FRACTION - 1)
    if not {"width", "height"} <= fields.keys():
        return None
    width, height = (float(np.asarray(fields[side].read()).reshape(-1)[0]) for side in ("width", "height"))
    return in_photo(boxes, width, height, place)


def in_photo(
    boxes: npt.NDArray[np.float32], width: float, height: float, place: str, *, outside: float = _PIXELS_OUTSIDE
) -> FloatArray:
    """(N, 4) xyxy in pixels -> the same as fractions of the photo's sides.

    Raises `DataError`, naming `place`, where a box reaches out of the photo by more than `outside` pixels, or has its
    corners exchanged.
    """
    sides = np.array([width, height] * 2, np.float32)
    beyond = (boxes < -outside) | (boxes > sides + outside)
    # What is not a number is not in the photo either.
    wrong = ~(~beyond.any(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))
    if wrong.any():
        corners = ", ".join(f"{corner:g}" for corner in boxes[wrong][0])
        raise DataError(
            f"{place}: box ({corners}) does not lie in a photo of {width:g} x {height:g} pixels; get the file again."
        )
    return np.asarray(np.clip(boxes / sides, 0, 1))
