"""The toy world on disk: a folder of pictures and a Karpathy-style dataset.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from vsrn.errors import DataError
from vsrn.files import write_atomically
from vsrn.toy.captions import describe
from vsrn.toy.drawing import draw_scene
from vsrn.toy.scenes import ToyScene, invent_scenes

# There are 8,424 different ones; beyond this, most that are invented have been there before.
MOST_SCENES = 5_000


def draw_toy_world(folder: Path | str, *, train: int = 500, val: int = 100, seed: int = 0) -> Path:
    """Draw `train` + `val` pictures, write their captions, and return the path of dataset.json.

    `folder/images/*.jpg` are 224 x 224 pixels; `folder/dataset.json` has the Karpathy layout with five
    captions an image, and beside them `objects`: name, colour and box (xyxy as fractions) of both.
    No two pictures show the same scene. The same arguments give the same bytes with the same Pillow.

    Raises `DataError` where the folder already holds a dataset.json, cannot be written, or where
    the number of pictures is above 5,000, or not at least one in each split.
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
