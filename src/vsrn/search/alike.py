"""Which photos of a list are alike: their files are equal, or both their vectors and their pictures, shrunk to a few
grey pixels, nearly are, as those of one picture that was saved again, resized or slightly cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vsrn.metrics import FloatArray
from vsrn.search.records import PhotoRecord

# Of 750 altered copies of Flickr8K's photos 747 are within both, of 499,500 pairs of different photos none.
LEAST_COSINE, LEAST_CORRELATION = 0.45, 0.9
SIDE = 8
# A thumbnail is small; a damaged or foreign one may claim anything.
MOST_PIXELS = 2_000_000


def groups_of(
    photos: Sequence[PhotoRecord], vectors: FloatArray, small_of: Callable[[PhotoRecord], FloatArray]
) -> list[list[int]]:
    """Places of `photos` in groups: each group begins with a photo that is like none before, and its likes follow.

    vectors   (n, D) of length 1, of each photo; zeros for one that is like nothing but its copies
    small_of  `small_picture` of a photo; asked for those alone whose vectors are nearly equal

    Groups come in the order of their first photos.
    """
    near = vectors @ vectors.T >= LEAST_COSINE
    groups: list[list[int]] = []
    for place, photo in enumerate(photos):
        for group in groups:
            first = photos[group[0]]
            same = photo.sha256 == first.sha256
            if not same and near[place, group[0]]:
                one, other = small_of(photo), small_of(first)
                same = one.shape == other.shape and bool(one @ other >= LEAST_CORRELATION)
            if same:
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def small_picture(jpeg: bytes) -> FloatArray:
    """(SIDE * SIDE,) float32: the grey of a picture, shrunk, less its mean and of length 1; zeros for a single grey.

    The product of two is the correlation of the pictures, whatever their brightness and contrast. Raises `PhotoError`.
    """
    # Pillow takes a tenth of a second to load, and hardly any search needs it.
    from PIL import Image  # noqa: PLC0415

    from vsrn.data.photos import decode_photo  # noqa: PLC0415

    picture = decode_photo(jpeg, max_pixels=MOST_PIXELS, target_size=2 * SIDE)
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.float32).ravel()
    grey -= grey.mean()
    length = np.linalg.norm(grey)
    return grey / length if length else grey
