"""Random region dropping, the size augmentation of VSE-infinity (Chen et al. 2021): an image is some of its regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsrn.regions.store import FloatArray, IntArray


def draw_margins(images: int, regions: int, most: float, seed: Sequence[int]) -> FloatArray:
    """(images, regions) by how much each region escapes being dropped; below 0 it does not.

    most  each image draws the probability that its regions are dropped by, between 0 and this
    """
    generator = np.random.default_rng(seed)
    probabilities = most * generator.random((images, 1), dtype=np.float32)
    return generator.random((images, regions), dtype=np.float32) - probabilities


def drop_regions(features: FloatArray, counts: IntArray | None, margins: FloatArray) -> tuple[FloatArray, IntArray]:
    """(B, N, F) regions and (B,) real ones of each or None for all -> those that are kept, in their order.

    margins  (B, N) of `draw_margins`; whatever they are, an image keeps the region of its largest

    The shape stays: kept regions come first, zeros follow, and the counts say how many are real.
    """
    places = np.arange(features.shape[1])
    real = np.broadcast_to(places < (features.shape[1] if counts is None else counts[:, None]), margins.shape)
    margins = np.where(real, margins, -np.inf)
    kept = margins >= np.minimum(margins.max(axis=1, keepdims=True), 0)
    # A stable sort by what is dropped moves the kept ones forward and leaves their order.
    order = np.argsort(~kept, axis=1, kind="stable")
    left = kept.sum(axis=1)
    moved = np.take_along_axis(features, order[..., None], axis=1)
    moved[places >= left[:, None]] = 0
    return moved, left
