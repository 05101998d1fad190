"""Regions of one image. The fields of `Regions` are the one table of what a region carries.

Stores, indexes and messages between machines read from it what their arrays are called, which type they have on disk
and how they are padded. A further thing is one more field, and where it is optional a `has_` flag of `SplitHeader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vsrn.errors import DataError
from vsrn.metrics import FloatArray, IntArray


@dataclass(frozen=True)
class RegionArray:
    """How one field of `Regions` is stored.

    name      of the field
    suffix    of its file, which begins with the split's name
    dtype     on disk
    shape     of one region's value; -1 is the extractor's `feature_dim`
    filler    what a row holds beyond an image's own regions
    named     whether it holds numbers of the `RegionNames` field of the same name, and is stored only where those exist
    optional  whether regions may lack it
    """

    name: str
    suffix: str
    dtype: str
    shape: tuple[int, ...] = ()
    filler: int = 0
    named: bool = False
    optional: bool = False

    def row_shape(self, feature_dim: int) -> tuple[int, ...]:
        """The shape of one region's value."""
        return tuple(feature_dim if side == -1 else side for side in self.shape)


@dataclass(frozen=True)
class Regions:
    """What an extractor says of one image, or what a store holds of many: then each array has one more axis in front.

    features    (N, F) float32; N may differ from image to image
    boxes       (N, 4) float32, xyxy as fractions of the image's width and height
    scores      (N,) float32 detection confidence, falling; None where regions are not detections
    classes     (N,) number of the most probable class; None where it is not known
    attributes  (N,) number of the most probable attribute, -1 where none is more probable; None where it is not known
    """

    features: FloatArray = field(metadata={"suffix": "_ims.npy", "dtype": "<f2", "shape": (-1,)})
    boxes: FloatArray = field(metadata={"suffix": "_boxes.npy", "dtype": "<f4", "shape": (4,)})
    scores: FloatArray | None = field(default=None, metadata={"suffix": "_scores.npy", "dtype": "<f4"})
    classes: IntArray | None = field(
        default=None, metadata={"suffix": "_classes.npy", "dtype": "<i2", "filler": -1, "named": True}
    )
    attributes: IntArray | None = field(
        default=None, metadata={"suffix": "_attributes.npy", "dtype": "<i2", "filler": -1, "named": True}
    )

    def arrays(self) -> Iterator[tuple[RegionArray, npt.NDArray[Any]]]:
        """Every array that these regions have, with how it is stored."""
        for array in ARRAYS:
            values = getattr(self, array.name)
            if values is not None:
                yield array, values

    def in_half_precision(self) -> Regions:
        """The same regions with features rounded to float16, as stores and indexes keep them."""
        with np.errstate(over="ignore"):
            return replace(self, features=self.features.astype(np.float16))


ARRAYS = tuple(RegionArray(one.name, optional=one.default is None, **one.metadata) for one in fields(Regions))


class RegionNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What regions may be called: the `{split}_names.json` beside the arrays.

    classes     by number, such as "dog"; empty where classes have no names, and then they are not stored
    attributes  by number, such as "brown"; empty where attributes have no names, and then they are not stored
    """

    classes: list[str] = []
    attributes: list[str] = []

    def labels(self, classes: IntArray, attributes: IntArray | None = None) -> list[str]:
        """(N,) numbers, -1 for none -> a label of each region. Raises `IndexError` where a number has no name.

        >>> RegionNames(["dog", "sky"], ["brown"]).labels(np.array([0, 1]), np.array([0, -1]))
        ['brown dog', 'sky']
        """
        named = [self.classes[number] if number >= 0 else "" for number in classes]
        if attributes is None:
            return named
        described = [self.attributes[number] if number >= 0 else "" for number in attributes]
        return [f"{how} {what}".strip() for how, what in zip(described, named, strict=True)]

    def labels_of(self, regions: Regions) -> list[str] | None:
        """A label of each region of an image; None without classes or their names. Raises what `check_named` raises."""
        if regions.classes is None or not self.classes:
            return None
        self.check_named(regions)
        return self.labels(regions.classes, regions.attributes if self.attributes else None)

    def check_named(self, regions: Regions) -> None:
        """Raise `DataError` where there are names, and not for every number of these regions."""
        classes = "class", self.classes, regions.classes
        for what, names, numbers in (classes, ("attribute", self.attributes, regions.attributes)):
            if names and numbers is not None and numbers.max(initial=-1) >= len(names):
                raise DataError(
                    f"a region is of {what} {numbers.max()}, but only 0 to {len(names) - 1} have names; give the names"
                    " that belong to the extractor."
                )


def native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers as this machine computes with them: in its byte order, and floats wider than float32 as float32."""
    wide = values.dtype.kind == "f" and values.dtype.itemsize > 4
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32 if wide else values.dtype.newbyteorder("="))


def pad_regions(regions: Sequence[Regions]) -> tuple[FloatArray, IntArray | None]:
    """Regions of B images -> (B, N, F) features, zeros after each image's own; (B,) counts, None where all have N."""
    counts = np.array([len(image.features) for image in regions])
    features = padded([image.features for image in regions], int(counts.max()))
    return features, None if (counts == counts[0]).all() else counts


def padded(rows: Sequence[npt.NDArray[Any]], length: int, filler: int = 0) -> npt.NDArray[Any]:
    """Arrays of at most `length` regions -> one array (B, length, ...), `filler` where an image has fewer."""
    if all(len(row) == length for row in rows):
        return np.stack(rows)
    whole = np.full((len(rows), length, *rows[0].shape[1:]), filler, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = row
    return whole


def first_of_zeros(batch: FloatArray, counts: IntArray | None = None) -> int | None:
    """(B, N, F) features, (B,) real regions of each or None -> place of the first image of zeros alone, or None."""
    # Only an image whose first region is zeros can be one: one region in N is looked at.
    for place in np.flatnonzero(~batch[:, 0].any(axis=1)):
        if not batch[place, : None if counts is None else counts[place]].any():
            return int(place)
    return None


def may_not_be_finite(batch: FloatArray) -> bool:
    """A quick look at every number, since every batch is looked at: False means finite, True that it may not be."""
    if batch.dtype == np.float16:
        # The exponent of what is not finite is all ones, so as a whole number it is among the largest of its sign.
        # Processors compute with integers faster than with half precision.
        positive, negative = batch.view(np.int16).max(initial=0), batch.view(np.uint16).max(initial=0)
        return bool(positive >= 0x7C00 or negative >= 0xFC00)
    # The sum is finite unless a term is not, or the terms overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        return not np.isfinite(batch.sum())
