"""A scene of the toy world as a picture."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vsrn.toy.scenes import BACKGROUNDS, COLOURS, PICTURE_SIZE, RGB, ToyScene

# Pictures are drawn this many times larger and reduced, so that edges are smooth.
SCALE = 4
BROWN: RGB = (121, 85, 61)


class _Backdrop(NamedTuple):
    """A gradient from `top` to `bottom` with `number` ellipses (width, height in pixels) scattered over it."""

    top: RGB
    bottom: RGB
    mark: RGB
    size: tuple[int, int]
    number: int


BACKDROPS = {
    "sky": _Backdrop((112, 182, 236), (211, 235, 250), (240, 246, 252), (64, 22), 8),
    "sea": _Backdrop((98, 190, 214), (22, 98, 148), (130, 190, 215), (22, 3), 60),
    "sand": _Backdrop((250, 233, 190), (231, 200, 142), (214, 178, 116), (3, 3), 90),
    "grass": _Backdrop((164, 214, 112), (98, 168, 72), (84, 150, 64), (3, 9), 220),
    "night": _Backdrop((14, 17, 48), (52, 50, 104), (255, 250, 220), (3, 3), 60),
}
assert tuple(BACKDROPS) == BACKGROUNDS


def draw_scene(scene: ToyScene) -> Image.Image:
    """The scene as an RGB picture of 224 x 224; the same scene always gives the same pixels."""
    picture = _draw_backdrop(scene.background, scene.variant).copy()
    for thing in scene.objects:
        left, top, right, _ = (round(edge * PICTURE_SIZE) for edge in thing.box)
        sprite = draw_sprite(thing.name, thing.colour, right - left)
        picture.paste(sprite, (left, top), mask=sprite)
    return picture


@functools.cache
def _draw_backdrop(background: str, variant: int) -> Image.Image:
    backdrop, size = BACKDROPS[background], (PICTURE_SIZE * SCALE,) * 2
    generator = np.random.default_rng([BACKGROUNDS.index(background), variant])
    top, bottom = (Image.new("RGB", size, colour) for colour in (backdrop.top, backdrop.bottom))
    image = Image.composite(bottom, top, Image.linear_gradient("L").resize(size))
    draw = ImageDraw.Draw(image)
    width, height = (side * SCALE for side in backdrop.size)
    for x, y in generator.uniform(0, PICTURE_SIZE * SCALE, size=(backdrop.number, 2)):
        draw.ellipse((x - width / 2, y - height / 2, x + width / 2, y + height / 2), backdrop.mark)
    return image.reduce(SCALE)


def draw_sprite(name: str, colour: str, side: int) -> Image.Image:
    """One object, `side` pixels wide and high, RGBA; it touches all four sides of its picture."""
    image = Image.new("RGBA", (side * SCALE,) * 2)
    draw, last, fill = ImageDraw.Draw(image), side * SCALE - 1, COLOURS[colour]
    if name in ("ball", "ring"):
        draw.ellipse((0, 0, last, last), fill)
    if name == "ring":
        draw.ellipse((0.17 * last, 0.17 * last, 0.83 * last, 0.83 * last), (0, 0, 0, 0))
    if name == "box":
        draw.rounded_rectangle((0, 0, last, last), 0.07 * last, fill)
    for points, own in POLYGONS.get(name, ()):
        draw.polygon([(x * last, y * last) for x, y in points], own or fill)
    return image.reduce(SCALE)


def _star() -> list[tuple[float, float]]:
    """The ten corners of a star that touches all four sides of the unit square."""
    turns = [(math.pi * step / 5, radius) for step, radius in enumerate([1.0, 0.45] * 5)]
    corners = np.array([(radius * math.sin(turn), -radius * math.cos(turn)) for turn, radius in turns])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [(float(x), float(y)) for x, y in (corners - low) / (high - low)]


# Corners in the unit square, (0, 0) at the top left, and the colour where it is not the object's own.
POLYGONS: dict[str, list[tuple[list[tuple[float, float]], RGB | None]]] = {
    "star": [(_star(), None)],
    "boat": [
        ([(0.4, 0), (0.44, 0), (0.44, 0.76), (0.4, 0.76)], BROWN),
        ([(0.47, 0.03), (0.98, 0.64), (0.47, 0.64)], None),
        ([(0.37, 0.16), (0.37, 0.64), (0.06, 0.64)], None),
        ([(0, 0.71), (1, 0.71), (0.82, 1), (0.18, 1)], None),
    ],
}
