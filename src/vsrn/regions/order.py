"""The order in which a model reads the regions of an image: an experiment's setting, since VSRN's GRU depends on it."""

from __future__ import annotations

import zlib

import numpy as np

from vsrn.config import RegionOrder
from vsrn.regions.store import FloatArray, IntArray


def reading_places(features: FloatArray, counts: IntArray | None, order: RegionOrder) -> IntArray:
    """(B, N, F) regions, (B,) real ones of each or None for all -> (B, N) places in the order they are read.

    Padded regions stay where they are, last. A shuffled order is that of checksums of the regions' own features,
    rounded to float16: random, and yet the same in whatever batch, split or file an image is met, and of the regions
    that stay when one is taken out.

    >>> reading_places(np.ones((1, 4, 2)), np.array([3]), "reversed")
    array([[2, 1, 0, 3]])
    """
    places = np.tile(np.arange(features.shape[1]), (len(features), 1))
    if order == "stored":
        return places
    for image, row in enumerate(places):
        real = features.shape[1] if counts is None else int(counts[image])
        row[:real] = row[:real][::-1] if order == "reversed" else np.argsort(_checksums(features[image, :real]))
    return places


def in_order(features: FloatArray, counts: IntArray | None, order: RegionOrder) -> FloatArray:
    """(B, N, F) regions as stored, (B,) real ones of each or None for all -> the same, in the order they are read."""
    return features if order == "stored" else at_places(features, reading_places(features, counts, order))


def at_places(regions: FloatArray, places: IntArray) -> FloatArray:
    """(B, N, D) features or what a model says of regions, as stored; (B, N) `reading_places` -> the same, as read."""
    return np.asarray(np.take_along_axis(regions, places[..., None], axis=1))


def back_in_place(regions: FloatArray, places: IntArray) -> FloatArray:
    """The inverse of `at_places`: (B, N, D) as read, (B, N) `reading_places` -> the same, as stored."""
    stored = np.empty_like(regions)
    np.put_along_axis(stored, places[..., None], regions, axis=1)
    return stored


def _checksums(regions: FloatArray) -> list[int]:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(regions, dtype=np.float16)
    return [zlib.crc32(region.data) for region in rounded]
