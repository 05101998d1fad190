"""Do explanations point at what a sentence names? The pointing game (Zhang et al. 2016) on the demo's drawn scenes.

    vsrn demo -o demo
    python experiments/pointing.py demo

For each object of each val scene, "A red boat." is explained, and the hottest pixel of the heat is looked up: inside
the object's box is a hit. Where several pixels are equally hot, the share of them inside counts. Beside it:

    area           share of the scene that the box covers: what a pixel at random would hit
    other object   how often the box is hit while the sentence names the scene's other object, scenes with one object
                   inside the other left out ("apart")
    image          the view that knows no sentence
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tyro

from vsrn.data.region_store import open_region_store
from vsrn.data.regions import Regions
from vsrn.encoders.explain import Explanation, explain_regions
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.metrics import FloatArray

Box = tuple[float, float, float, float]


def main(demo: tyro.conf.Positional[Path], *, run: Path | None = None, split: str = "val") -> None:
    """Print hits and what chance would hit.

    Args:
        demo: Folder that `vsrn demo -o` made.
        run: Another model of the same regions [default: the demo's].
        split: Scenes to explain.
    """
    for name, value in measure(demo, run or demo / "run", split):
        print(f"{name:<42} {value:6.1%}")


def measure(demo: Path, run: Path, split: str = "val") -> list[tuple[str, float]]:
    """Each line that is printed: its name, and its mean over objects."""
    store = open_region_store(demo / "regions", split)
    scenes = json.loads((demo / "world" / "dataset.json").read_text())["images"]
    objects = {scene["filename"]: scene["objects"] for scene in scenes}
    return play(
        TorchEncoder.load(run, "cpu"), [(regions_of(store, row), objects[name]) for row, name in enumerate(store.ids)]
    )


def regions_of(store: Any, row: int) -> Regions:
    """Regions of one scene of a store."""
    return Regions(store.read([row])[0].astype(np.float32), np.asarray(store.boxes[row]))


def play(encoder: TorchEncoder, scenes: list[tuple[Regions, list[dict[str, Any]]]]) -> list[tuple[str, float]]:
    """The game on scenes, each given by its regions and its two objects."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for regions, (first, second) in scenes:
        for named, other in ((first, second), (second, first)):
            explanation = explain_regions(encoder, regions, sentence_of(named))
            note("sentence: hottest pixel in the box", hit(explanation.heat, named["box"]))
            note("sentence: share of the heat in the box", inside(explanation, named["box"]))
            note("area of the box", float(mask(named["box"], len(explanation.heat)).mean()))
            note("image: hottest pixel in the box", hit(of_image(encoder, regions).heat, named["box"]))
            if not nested(named["box"], other["box"]):
                note("apart: sentence names the object", hit(explanation.heat, named["box"]))
                note("apart: sentence names the other object", hit(explanation.heat, other["box"]))
    return [(name, mean(values)) for name, values in found.items()]


def sentence_of(thing: dict[str, Any]) -> str:
    """A sentence that names one object."""
    return f"{'An' if thing['colour'].startswith('o') else 'A'} {thing['colour']} {thing['name']}."


def of_image(encoder: TorchEncoder, regions: Regions) -> Explanation:
    """The view that knows no sentence."""
    return explain_regions(encoder, regions, "", "image")


def hit(heat: FloatArray, box: Box) -> float:
    """1 where the hottest pixel lies in the box, 0 where not; of several that are equally hot, the share of them."""
    return float(mask(box, len(heat))[heat == heat.max()].mean())


def inside(explanation: Explanation, box: Box) -> float:
    """Share of the heat that lies in the box."""
    heat = explanation.heat
    return float(heat[mask(box, len(heat))].sum() / max(heat.sum(), 1e-9))


def mask(box: Box, side: int) -> Any:
    """(side, side) True where a pixel's centre lies in the box."""
    x0, y0, x1, y1 = box
    centres = (np.arange(side) + 0.5) / side
    return ((centres >= y0) & (centres < y1))[:, None] & ((centres >= x0) & (centres < x1))


def nested(one: Box, other: Box) -> bool:
    """Whether the boxes overlap, as they do where one object is drawn inside the other."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


if __name__ == "__main__":
    tyro.cli(main)
