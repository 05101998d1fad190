"""The backgrounds of the toy world: a gradient and a few strokes, in several variants each."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vsrn.toy.scenes import PICTURE_SIZE, RGB

SCALE = 2
SIDE = PICTURE_SIZE * SCALE

SKIES: dict[str, tuple[RGB, RGB]] = {
    "sky": ((112, 182, 236), (211, 235, 250)),
    "sea": ((98, 190, 214), (22, 98, 148)),
    "sand": ((250, 233, 190), (231, 200, 142)),
    "grass": ((164, 214, 112), (98, 168, 72)),
    "night": ((14, 17, 48), (52, 50, 104)),
}


@functools.cache
def draw_backdrop(background: str, variant: int) -> Image.Image:
    """One background, RGB, `PICTURE_SIZE` wide and high; the same picture for the same arguments."""
    generator = np.random.default_rng([list(SKIES).index(background), variant])
    image = _gradient(*SKIES[background])
    # White under what is transparent: the blur of the clouds mixes it in.
    strokes = Image.new("RGBA", image.size, (255, 255, 255, 0))
    DETAILS[background](ImageDraw.Draw(strokes), generator)
    if background == "sky":
        strokes = strokes.filter(ImageFilter.GaussianBlur(5))
    image.paste(strokes, mask=strokes)
    return image.reduce(SCALE)


def _gradient(top: RGB, bottom: RGB) -> Image.Image:
    size = (SIDE, SIDE)
    return Image.composite(
        Image.new("RGB", size, bottom), Image.new("RGB", size, top), Image.linear_gradient("L").resize(size)
    )


def _clouds(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    for row in range(3):
        x, y = generator.uniform(0, SIDE), SIDE * (row + generator.uniform(0.3, 0.8)) / 3
        for puff in (-2, -1, 0, 1, 2):
            radius = generator.uniform(26, 34) * (1 - abs(puff) / 5)
            middle = x + puff * 30
            draw.ellipse((middle - radius, y - radius, middle + radius, y + radius / 2), (255, 255, 255, 200))


def _waves(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    for row in range(11):
        y, shift = row * 42 + 20, generator.uniform(0, 80)
        for column in range(-1, 7):
            left = column * 80 + shift
            draw.arc((left, y - 9, left + 42, y + 13), 200, 340, (255, 255, 255, 90), width=4)


def _dunes(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    for row in range(4):
        phase, height = generator.uniform(0, 2 * np.pi), 70 + row * 105
        crest = [(x, height + 14 * np.sin(2 * np.pi * x / (SIDE * 1.1) + phase)) for x in range(-10, SIDE + 20, 10)]
        draw.line(crest, (214, 178, 116, 120), width=5, joint="curve")
    for x, y in generator.uniform(0, SIDE, size=(90, 2)):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), (190, 150, 92, 130))


def _blades(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    for x, y in generator.uniform(0, SIDE, size=(110, 2)):
        for lean in (-7, 0, 7):
            draw.line((x, y, x + lean, y - 15 + abs(lean) / 2), (58, 128, 50, 120), width=3)


def _stars(draw: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    for x, y in generator.uniform(0, SIDE, size=(60, 2)):
        radius = generator.uniform(1, 3)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 250, 220, 210))


DETAILS: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], None]] = {
    "sky": _clouds,
    "sea": _waves,
    "sand": _dunes,
    "grass": _blades,
    "night": _stars,
}
