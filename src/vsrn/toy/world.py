"""The toy world on disk: a folder of drawn pictures and a Karpathy-style dataset.json."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vsrn.errors import DataError
from vsrn.files import write_atomically
from vsrn.toy.scenes import BACKGROUNDS, COLOURS, PICTURE_SIZE, RGB, ToyScene, describe, invent_scenes

# There are 8,424 different ones; beyond this, most that are invented have been there before.
MOST_SCENES = 5_000
# Pictures are drawn this many times larger and reduced, so that edges are smooth.
SCALE = 4
BROWN: RGB = (121, 85, 61)
# Colours of the top, of the bottom and of the ellipses that are scattered over both; these' size in pixels and number.
BACKDROPS: dict[str, tuple[RGB, RGB, RGB, tuple[int, int], int]] = {
    "sky": ((112, 182, 236), (211, 235, 250), (240, 246, 252), (64, 22), 8),
    "sea": ((98, 190, 214), (22, 98, 148), (130, 190, 215), (22, 3), 60),
    "sand": ((250, 233, 190), (231, 200, 142), (214, 178, 116), (3, 3), 90),
    "grass": ((164, 214, 112), (98, 168, 72), (84, 150, 64), (3, 9), 220),
    "night": ((14, 17, 48), (52, 50, 104), (255, 250, 220), (3, 3), 60),
}


def draw_toy_world(folder: Path | str, *, train: int = 500, val: int = 100, seed: int = 0) -> Path:
    """Draw `train` + `val` pictures, write their captions, and return the path of dataset.json.

    `folder/images/*.jpg` are 224 x 224 pixels; `folder/dataset.json` has the Karpathy layout with five captions an
    image, and `objects`: name, colour and box (xyxy as fractions) of both. No two pictures show the same scene. The
    same arguments give the same bytes with the same Pillow.

    Raises `DataError` where the folder holds a dataset.json or cannot be written, or for more than 5,000 pictures, or
    none in a split.
    """
    folder = Path(folder)
    dataset_path = folder / "dataset.json"
    if dataset_path.exists():
        raise DataError(f"{dataset_path} already exists; name another folder, or remove it first.")
    if min(train, val) < 1 or train + val > MOST_SCENES:
        raise DataError(
            f"the toy world cannot have {train} train and {val} val pictures;"
            f" ask for at least one of each and no more than {MOST_SCENES:,} together."
        )
    generator = np.random.default_rng(seed)
    scenes = invent_scenes(train + val, generator)
    try:
        images = [
            _write_image(folder, number, "train" if number < train else "val", scene, generator)
            for number, scene in enumerate(scenes)
        ]
        # Written last: a folder with a dataset.json is complete.
        write_atomically(dataset_path, json.dumps({"dataset": "toy", "images": images}, indent=1).encode())
    except OSError as error:
        raise DataError(
            f"the toy world cannot be written to {folder}: {error.strerror}; name another folder."
        ) from error
    return dataset_path


def _write_image(
    folder: Path, number: int, split: str, scene: ToyScene, generator: np.random.Generator
) -> dict[str, Any]:
    """Write one picture and return its entry of dataset.json."""
    filename = f"toy_{number:05d}.jpg"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    draw_scene(scene).save(folder / "images" / filename, quality=92, subsampling=0)
    captions = describe(scene, generator)
    sentids = [number * len(captions) + place for place in range(len(captions))]
    return {
        "filename": filename,
        "split": split,
        "imgid": number,
        "sentids": sentids,
        "sentences": [
            {"raw": raw, "tokens": re.findall(r"\w+", raw.lower()), "imgid": number, "sentid": sentid}
            for raw, sentid in zip(captions, sentids, strict=True)
        ],
        "objects": [
            {"name": thing.name, "colour": thing.colour, "box": list(thing.box)}
            for thing in (scene.first, scene.second)
        ],
    }


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
    top_colour, bottom_colour, mark, sides, number = BACKDROPS[background]
    size = (PICTURE_SIZE * SCALE,) * 2
    generator = np.random.default_rng([BACKGROUNDS.index(background), variant])
    top, bottom = (Image.new("RGB", size, colour) for colour in (top_colour, bottom_colour))
    image = Image.composite(bottom, top, Image.linear_gradient("L").resize(size))
    draw = ImageDraw.Draw(image)
    width, height = (side * SCALE for side in sides)
    for x, y in generator.uniform(0, PICTURE_SIZE * SCALE, size=(number, 2)):
        draw.ellipse((x - width / 2, y - height / 2, x + width / 2, y + height / 2), mark)
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
