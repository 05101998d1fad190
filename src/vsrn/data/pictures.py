"""A photo in whatever form a program holds it -> an upright RGB picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vsrn.data.photos import MAX_BYTES, MAX_RATIO, decode_photo, reason_of
from vsrn.data.to_rgb import shrink_factor, to_rgb
from vsrn.errors import PhotoError

# A path; the bytes of a file, or the file opened with "rb"; a picture of Pillow; (H, W, 3) uint8 RGB pixels.
Photo = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[Any]


def picture_of(photo: Photo, target_size: int | None = None) -> Image.Image:
    """One photo in any form -> an upright RGB picture of 8 bits a channel; what was given is not changed.

    target_size  as in `vsrn.data.photos.decode_photo`

    Raises `PhotoError` where it cannot be read or is no photo.
    """
    if isinstance(photo, str | os.PathLike):
        return decode_photo(Path(photo), target_size=target_size)
    if isinstance(photo, bytes | bytearray | memoryview):
        return decode_photo(bytes(photo), target_size=target_size)
    if isinstance(photo, Image.Image):
        return _rgb_of(photo, target_size)
    if hasattr(photo, "read"):
        content = photo.read(MAX_BYTES + 1)
        if not isinstance(content, bytes):
            raise PhotoError('the file of a photo was opened as text; open it with mode "rb".', "unreadable")
        return decode_photo(content, target_size=target_size)
    return _rgb_of(_from_pixels(photo), target_size)


def name_of(photo: Photo) -> str:
    """What messages call a photo: its path, where it has one."""
    return str(photo) if isinstance(photo, str | os.PathLike) else "this photo"


def _from_pixels(photo: Any) -> Image.Image:
    """(H, W, 3) uint8 RGB, as an array of numpy or of anything that turns into one -> a picture."""
    if not hasattr(photo, "__array__"):
        raise PhotoError(
            f"a {type(photo).__name__} is no photo; give a path, the bytes of a file, a picture of Pillow or an array"
            " of (height, width, 3) uint8 RGB.",
            "no-photo",
        )
    pixels = np.asarray(photo.cpu() if hasattr(photo, "cpu") else photo)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PhotoError(
            f"an array of shape {pixels.shape} and type {pixels.dtype} is no photo; give (height, width, 3) uint8 RGB.",
            "no-photo",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _rgb_of(picture: Image.Image, target_size: int | None) -> Image.Image:
    """A picture in memory, or one that Pillow has opened and not yet read, as `picture_of` gives it."""
    width, height = picture.size
    if not 0 < max(width, height) <= MAX_RATIO * min(width, height):
        raise PhotoError(f"a picture of {width} x {height} pixels cannot be used; crop it.", "too-large")
    try:
        return to_rgb(ImageOps.exif_transpose(picture), shrink_factor(picture.size, target_size))
    except Exception as error:
        # Pillow reads a file only now, and its decoders raise anything.
        raise PhotoError(f"this picture cannot be read ({reason_of(error)}); open its file again.") from error
