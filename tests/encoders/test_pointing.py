"""Explanations of drawn scenes, whose objects' places are known: the heat falls on what the sentence names."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import vsrn
from vsrn.cli import run_command
from vsrn.cli.demo import toy_config
from vsrn.cli.train import train
from vsrn.config import CaptionerConfig, ModelConfig
from vsrn.toy.world import draw_toy_world

EXPERIMENT = Path(__file__).parent.parent.parent / "experiments" / "pointing.py"


@pytest.fixture(scope="module")
def pointing() -> ModuleType:
    """The experiment that docs/explain.md quotes."""
    spec = importlib.util.spec_from_file_location("pointing", EXPERIMENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes and their regions."""
    folder = tmp_path_factory.mktemp("world")
    dataset = draw_toy_world(folder / "world", train=200, val=30)
    captions = ["--captions", str(dataset)]
    assert run_command("extract", [str(folder / "world/images"), "-o", str(folder / "regions"), *captions]) == 0
    return folder


def test_a_hit_is_the_share_of_the_hottest_pixels_that_lie_in_the_box(pointing: ModuleType) -> None:
    heat = np.zeros((4, 4))
    heat[1, 2] = heat[3, 0] = 1
    assert pointing.hit(heat, (0.5, 0.25, 0.75, 0.5)) == 0.5
    assert pointing.hit(heat, (0, 0, 1, 1)) == 1
    assert pointing.hit(heat, (0, 0, 0.5, 0.5)) == 0


def test_real_things_are_looked_for_in_every_view_beside_what_chance_hits(
    pointing: ModuleType, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = sorted((world / "world" / "images").iterdir())[:2]
    boxes = [[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.5]]
    things = [{"photo": photo.name, "thing": "person", "query": "a man", "boxes": boxes} for photo in photos]
    things.append(things[0] | {"thing": "dog", "query": "a dog"})
    (world / "things.json").write_text(json.dumps(things))
    images = [{"filename": photo.name, "sentences": [{"raw": "A man and a dog."}]} for photo in photos]
    (world / "captions.json").write_text(json.dumps({"images": images}))
    pointing.main(photos[0].parent, real=world / "things.json", captions=world / "captions.json")
    lines = capsys.readouterr().out.splitlines()
    assert {line[:40].strip() for line in lines} >= {
        "relevance, cells",
        "relevance not faded, cells",
        "word of a caption, cells",
        "whole caption, regions",
        "words, regions",
        "sentence, regions",
        "image, regions",
    }
    # A quarter of the photo, and half of the other box beside it.
    assert any(line.startswith("chance") and " 31.2 [31.2, 31.2]  people 31.2" in line for line in lines)


def test_an_interval_is_a_bootstrap_of_the_mean(pointing: ModuleType) -> None:
    values = np.array([0.0, 1.0] * 200)
    mean, low, high = (float(word.strip("[],")) for word in pointing.interval(values).split())
    # 1.96 times the standard error of a proportion.
    assert (mean, low, high) == pytest.approx((50, 50 - 4.9, 50 + 4.9), abs=0.6)


MODELS = {
    "mean": ModelConfig(aggregator="mean", reasoning_layers=1, normalisation="none"),
    "gru": ModelConfig(aggregator="gru", reasoning_layers=1, normalisation="flickr30k"),
}


@pytest.mark.parametrize(
    ("name", "view", "epochs", "least", "most_elsewhere"),
    [("mean", "relevance", 12, 60, 10), pytest.param("gru", "sentence", 24, 30, 25, marks=pytest.mark.slow)],
)
def test_heat_falls_on_the_object_that_a_sentence_names_far_more_often_than_chance(
    name: str,
    view: str,
    epochs: int,
    least: float,
    most_elsewhere: float,
    pointing: ModuleType,
    world: Path,
    tmp_path: Path,
) -> None:
    """By chance it would for one in six, the share of a scene that a box covers."""
    captioner = CaptionerConfig(enabled=False)
    config = toy_config(world / "regions", epochs)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(MODELS[name], joint_dim=96, word_dim=64, captioner=captioner),
        train=dataclasses.replace(config.train, batch_size=50, learning_rate=2e-3),
    )
    assert train(config, tmp_path / "run", resume=False, json=False) == 0
    rates = dict(pointing.measure(world, tmp_path / "run"))
    assert 0.1 < rates["area of the box"] < 0.2
    assert vsrn.load(tmp_path / "run").default_view == view
    assert rates[f"{view}: hottest pixel in the box"] > least / 100
    assert rates[f"{view}: share of the heat in the box"] > 1.5 * rates["area of the box"]
    # Not on whatever is in the scene: on what is named.
    assert rates[f"{view}, apart: sentence names the object"] > least / 100
    assert rates[f"{view}, apart: sentence names the other object"] < most_elsewhere / 100
