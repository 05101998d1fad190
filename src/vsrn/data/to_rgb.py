"""Pictures of any mode, as Pillow decodes them, to 8-bit RGB; large ones shrink, a band of rows at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

_GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_ONE_BYTE = ("1", "L", "P")
# Converting takes a few copies of a band, of at most 4 bytes a pixel each.
_BAND_PIXELS = 1_000_000


def stored_bytes(mode: str) -> int:
    """Bytes that Pillow takes for one pixel of a mode."""
    return 1 if mode in _ONE_BYTE else 2 if mode in _GREY_16_BIT else 4


def shrink_factor(size: tuple[int, int], target_size: int | None) -> int:
    """The whole number by which to divide both sides, so that the shorter stays twice `target_size` or more."""
    return 1 if target_size is None else max(1, min(size) // (2 * target_size))


def shrunk_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """What `to_rgb` gives of a picture of this size."""
    return -(-size[0] // factor), -(-size[1] // factor)


def to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """A loaded picture of any mode -> a new one in RGB, 1 / `factor` of its size by averaging squares of pixels.

    Transparency is laid on white; wide greys are scaled to 8 bits. It takes memory for a band of a million pixels.
    """
    if factor == 1 and image.mode == "RGB" and "transparency" not in image.info:
        rgb = image.copy()
        rgb.info.clear()  # what it says of orientation is for who reads the file
        return rgb
    width, height = image.size
    levels = _levels(image) if image.mode in (*_GREY_16_BIT, "I", "F") else None
    rows = max(1, _BAND_PIXELS // (width * factor)) * factor
    rgb = Image.new("RGB", shrunk_size(image.size, factor))
    for top in range(0, height, rows):
        band = _band_to_rgb(image.crop((0, top, width, min(top + rows, height))), levels)
        rgb.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
    return rgb


def _band_to_rgb(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        image = Image.fromarray(_grey_to_8_bits(np.asarray(image), *levels))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        opaque = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _levels(image: Image.Image) -> tuple[float, float]:
    """Which values of a grey picture are black and white.

    The white point is the type's: 65,535 for 16 bits, 1.0 for numbers that stay within 0..1. Wider types
    do not say theirs: 255 or 65,535, whichever holds the picture, and else its own darkest and brightest.
    """
    if image.mode in _GREY_16_BIT:
        return 0.0, 65535.0
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    black, brightest = np.inf, -np.inf
    for top in range(0, height, rows):
        values = _finite(np.asarray(image.crop((0, top, width, min(top + rows, height)))))
        black, brightest = min(black, float(values.min())), max(brightest, float(values.max()))
    if black < 0 or brightest > 65535:
        return black, brightest
    fits = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
    return 0.0, next(limit for limit in fits if brightest <= limit)


def _finite(grey: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    values = grey.astype(np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(values, -1e37, 1e37, out=values)  # so that no difference of two overflows


def _grey_to_8_bits(grey: npt.NDArray[np.generic], black: float, white: float) -> npt.NDArray[np.uint8]:
    """(H, W) greys of any type -> (H, W) 8-bit greys, 0 for black and 255 for white."""
    values = _finite(grey)
    values -= black
    if white > black:
        values *= 255.0 / (white - black)
    return np.rint(values).clip(0, 255).astype(np.uint8)
