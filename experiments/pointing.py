"""Do explanations point at what a sentence names? The pointing game (Zhang et al. 2016).

    vsrn demo -o demo
    python experiments/pointing.py demo
    python experiments/pointing.py photos --real things.json

    vsrn train demo/toy.toml --model.aggregator mean --model.reasoning_layers 0 -o demo/mean
    sed 's/"flickr30k"/"coco"/; s/^enabled = true/enabled = false/; s/"vsrn"/"scan"/' demo/toy.toml > demo/scan.toml
    vsrn train demo/scan.toml --train.epochs 12 -o demo/scan
    python experiments/pointing.py demo --run demo/mean

On the demo's drawn scenes, "A red boat." is explained for each object of each val scene, and the hottest pixel of the
heat is looked up: inside the object's box is a hit. Where several pixels are equally hot, the share of them inside
counts. Each view's hits are printed, and beside them:

    area           share of the scene that the box covers: what a pixel at random would hit
    other object   how often the box is hit while the sentence names the scene's other object, scenes with one object
                   inside the other left out ("apart")

On real photos, --real names a list of {photo, thing, query, boxes}: a file of the folder, a kind of thing, the words
for it, and all its boxes as shares of width and height. "centre" is what the middle of each photo hits, and "not faded"
is heat without what favours the middle: the sum over windows, and the fading at the edges. With --captions the words of
each thing are also looked for inside whole captions of its photo. Intervals are 95 % bootstraps over things.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tyro

import vsrn
from vsrn.data.region_store import open_region_store
from vsrn.data.regions import Regions
from vsrn.encoders.base import Encoder
from vsrn.encoders.explain import HEAT_SIDE, ExplainView, Explanation, blurred, explain_regions, heat_map, naming_words
from vsrn.errors import CheckpointError
from vsrn.metrics import FloatArray

Box = tuple[float, float, float, float]
VIEWS: tuple[ExplainView, ...] = ("relevance", "words", "sentence", "image")
RESAMPLES = 2000


def main(
    folder: tyro.conf.Positional[Path],
    *,
    run: Path | None = None,
    split: str = "val",
    real: Path | None = None,
    captions: Path | None = None,
) -> None:
    """Print hits and what chance would hit.

    Args:
        folder: Folder that `vsrn demo -o` made, or of the photos that --real names.
        run: Another model of the same regions, or of real photos [default: the demo's, or that in the package].
        split: Scenes to explain.
        real: List of things on real photos.
        captions: Their captions, in Karpathy's layout.
    """
    if real is not None:
        print_real(folder, json.loads(real.read_text()), vsrn.load(run or "flickr8k-small"), captions)
        return
    for name, value in measure(folder, run or folder / "run", split):
        print(f"{name:<50} {value:6.1%}")


def print_real(folder: Path, things: list[dict[str, Any]], encoder: Encoder, captions: Path | None) -> None:
    """Print hits on real photos, with their intervals, of all things and by kind: people, the rest, each half."""
    found: dict[str, list[float]] = {}
    sentences = {} if captions is None else captions_of(captions)
    for number, thing in enumerate(things):
        target = np.any([mask(box, HEAT_SIDE) for box in thing["boxes"]], axis=0)
        for name, heat in heats(encoder, folder / thing["photo"], thing["query"], sentences.get(thing["photo"], [])):
            found.setdefault(name, [np.nan] * len(things))[number] = hit_of(heat, target)
        found.setdefault("chance: area of the boxes", [np.nan] * len(things))[number] = float(target.mean())
    people = np.array([thing["thing"] == "person" for thing in things])
    halves = np.arange(len(things)) % 2 == 0
    for name, hits in found.items():
        values, there = np.array(hits), ~np.isnan(hits)
        kinds = {"": there, "people": people & there, "other": ~people & there}
        kinds |= {"even places": halves & there, "odd places": ~halves & there}
        print(f"{name:<40}" + "  ".join(f"{kind} {interval(values[rows])}".strip() for kind, rows in kinds.items()))


def interval(values: FloatArray) -> str:
    """Mean and 95 % bootstrap interval, in percent."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def heats(encoder: Encoder, photo: Path, query: str, sentences: list[str]) -> Iterator[tuple[str, FloatArray]]:
    """The heat of each view of a photo, by name: of its finest cells, and of the regions that an index keeps."""
    regions, cells = encoder._extract(photo, with_cells=True)
    word = naming_words(query, encoder.vocabulary)[-1]
    of: Callable[[str, ExplainView, Regions | None], Explanation]
    of = lambda sentence, view, cells: explain_regions(encoder, regions, sentence, view, None, cells)  # noqa: E731
    for place, given in (("cells", cells), ("regions", None)):
        for view in VIEWS[: 2 if place == "cells" else 4]:
            try:
                yield f"{view}, {place}", heat_of(of(query, view, given))
            except CheckpointError:
                continue
        explanation = of(query, "relevance", given)
        yield f"relevance not faded, {place}", not_faded(explanation)
        naming = [sentence for sentence in sentences if word in naming_words(sentence, encoder.vocabulary)][:1]
        for sentence in naming:
            explanation = of(sentence, "relevance", given)
            yield f"whole caption, {place}", heat_of(explanation)
            yield f"word of a caption, {place}", heat_of(explanation.of_word(word))
    axis = np.abs((np.arange(HEAT_SIDE) + 0.5) / HEAT_SIDE - 0.5)
    yield "centre", -np.maximum(axis, axis[:, None])


def heat_of(explanation: Explanation) -> FloatArray:
    """The heat of an explanation of regions that have boxes."""
    assert explanation.heat is not None
    return explanation.heat


def not_faded(explanation: Explanation) -> FloatArray:
    """The heat as a mean over the boxes at each pixel, blurred as if the photo went on beyond its edges."""
    assert explanation.boxes is not None
    evenly = np.ones_like(explanation.shares)
    mean_heat = heat_map(explanation.boxes, explanation.shares) / heat_map(explanation.boxes, evenly)
    heat: FloatArray = blurred(mean_heat) / blurred(np.ones_like(mean_heat))
    return heat


def captions_of(dataset: Path) -> dict[str, list[str]]:
    """Captions by the name of the photo's file."""
    images = json.loads(dataset.read_text())["images"]
    return {image["filename"]: [sentence["raw"] for sentence in image["sentences"]] for image in images}


def measure(demo: Path, run: Path, split: str = "val") -> list[tuple[str, float]]:
    """Each line that is printed: its name, and its mean over objects."""
    store = open_region_store(demo / "regions", split)
    scenes = json.loads((demo / "world" / "dataset.json").read_text())["images"]
    objects = {scene["filename"]: scene["objects"] for scene in scenes}
    return play(vsrn.load(run, "cpu"), [(regions_of(store, row), objects[name]) for row, name in enumerate(store.ids)])


def regions_of(store: Any, row: int) -> Regions:
    """Regions of one scene of a store."""
    return Regions(store.read([row])[0].astype(np.float32), np.asarray(store.boxes[row]))


def play(encoder: Encoder, scenes: list[tuple[Regions, list[dict[str, Any]]]]) -> list[tuple[str, float]]:
    """The game on scenes, each given by its regions and its two objects."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for regions, (first, second) in scenes:
        for named, other in ((first, second), (second, first)):
            note("area of the box", float(mask(named["box"], HEAT_SIDE).mean()))
            for view in VIEWS:
                try:
                    explanation = explain_regions(encoder, regions, sentence_of(named), view)
                except CheckpointError:
                    continue
                heat = heat_of(explanation)
                note(f"{view}: hottest pixel in the box", hit(heat, named["box"]))
                note(f"{view}: share of the heat in the box", inside(explanation, named["box"]))
                if not nested(named["box"], other["box"]):
                    note(f"{view}, apart: sentence names the object", hit(heat, named["box"]))
                    note(f"{view}, apart: sentence names the other object", hit(heat, other["box"]))
    return [(name, mean(values)) for name, values in found.items()]


def sentence_of(thing: dict[str, Any]) -> str:
    """A sentence that names one object."""
    return f"{'An' if thing['colour'].startswith('o') else 'A'} {thing['colour']} {thing['name']}."


def hit(heat: FloatArray, box: Box) -> float:
    """1 where the hottest pixel lies in the box, 0 where not; of several that are equally hot, the share of them."""
    return hit_of(heat, mask(box, len(heat)))


def hit_of(heat: FloatArray, target: Any) -> float:
    """The same for (side, side) True where a hit is."""
    return float(target[heat == heat.max()].mean())


def inside(explanation: Explanation, box: Box) -> float:
    """Share of the heat that lies in the box."""
    heat = heat_of(explanation)
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
