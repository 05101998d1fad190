"""From a photo to the pixels that the published detector reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsrn.errors import PhotoError

# Blue, green, red, as Caffe's networks have them.
MEAN_BGR = (102.9801, 115.9465, 122.7717)
Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScaleRules:
    """How large a photo is made: its short side so many pixels, unless its long side grows beyond the other."""

    short_side: int = 600
    long_side: int = 1000

    def scale_of(self, height: int, width: int) -> float:
        """The factor for a photo of this size.

        >>> ScaleRules().scale_of(300, 400), ScaleRules().scale_of(300, 1000)
        (2.0, 1.0)
        """
        scale = self.short_side / min(height, width)
        if round(scale * max(height, width)) > self.long_side:
            scale = self.long_side / max(height, width)
        return scale


def to_pixels(photo: npt.NDArray[np.uint8], rules: ScaleRules, min_side: float) -> Pixels:
    """(H, W, 3) RGB -> (H', W', 3) float32, BGR minus the mean, resized.

    The mean goes first, and the resizing is bilinear between the nearest pixels even where a photo shrinks:
    the published features were made like that. Raises `PhotoError` where the photo ends up so narrow that no
    box of `min_side` pixels fits.
    """
    height, width = photo.shape[:2]
    scale = rules.scale_of(height, width)
    new_height, new_width = round(height * scale), round(width * scale)
    if min(new_height, new_width) <= min_side:
        raise PhotoError(
            f"is {width} x {height} pixels, too narrow: with its long side brought to {rules.long_side} pixels"
            f" no region of {min_side:g} fits; crop it."
        )
    centred = photo[:, :, ::-1].astype(np.float32) - np.asarray(MEAN_BGR, np.float32)
    wide = _stretch(centred.transpose(1, 0, 2), new_width, scale).transpose(1, 0, 2)
    return np.ascontiguousarray(_stretch(wide, new_height, scale))


def _stretch(lines: Pixels, number: int, scale: float) -> Pixels:
    """(old, ...) lines -> (number, ...), each mixed from the two nearest to its centre."""
    centre = (np.arange(number) + 0.5) / scale - 0.5
    below = np.floor(centre).clip(0, len(lines) - 1).astype(np.intp)
    above = np.minimum(below + 1, len(lines) - 1)
    weight = (centre - below).clip(0, 1).astype(np.float32).reshape(-1, *[1] * (lines.ndim - 1))
    return lines[below] * (1 - weight) + lines[above] * weight
