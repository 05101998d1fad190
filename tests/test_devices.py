"""Everything computes where it is told, and a device that is not there is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import colour_model, save_photo
from fine_tuned_grid import save_fine_tuned
from worlds import make_model, make_scan, make_store

import vsrn
from vsrn.cli import run_command
from vsrn.config import CaptionerConfig
from vsrn.devices import pick_device
from vsrn.encoders.export import export_onnx
from vsrn.errors import ConfigError
from vsrn.extractors.base import make_extractor
from vsrn.search.build import update_index

SENTENCE = "dark red"
NOWHERE = "cuda:77"
# Only what is there is recommended.
HERE = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()]
COMPLAINT = f"there is no device '{NOWHERE}' here; use {' or '.join(['cpu', *HERE, 'auto'])}."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Photos, a model of them with a captioner, its index; a store of regions, a model and a SCAN of it."""
    folder = tmp_path_factory.mktemp("world")
    places = {name: folder / name for name in ("photos", "exported", "idx", "store", "run", "scan", "new")}
    for number in range(3):
        save_photo(places["photos"] / f"{number}.png", number)
    export_onnx(colour_model(captioner=CaptionerConfig(hidden_dim=8, word_dim=4)), places["exported"])
    update_index(places["photos"], places["idx"], places["exported"], device="cpu")
    make_store(places["store"], {"train": 20, "dev": 10})
    make_model(places["run"], places["store"])
    make_scan(places["scan"], places["store"])
    return places | {"photo": places["photos"] / "0.png"}


def test_auto_is_the_best_that_is_there() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto") == torch.device(best)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", [NOWHERE, "gpu", "", "cpu cuda", "meta:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no device .* here; {COMPLAINT.partition('; ')[2]}"):
        pick_device(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    """A file of weights for one extractor of each kind that needs no package but our own dependencies."""
    import timm
    import torchvision

    folder = tmp_path_factory.mktemp("weights")
    torch.save(timm.create_model("resnet18").state_dict(), folder / "resnet18.pth")
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.save(detector.state_dict(), folder / "detector.pth")
    return {
        "grid": None,
        "grid, fine-tuned": save_fine_tuned(folder / "grid.safetensors"),
        "timm:resnet18": folder / "resnet18.pth",
        "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": folder / "detector.pth",
    }


@pytest.mark.parametrize(
    "kind", ["grid", "grid, fine-tuned", "timm:resnet18", "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"]
)
def test_an_extractor_computes_where_it_is_told(kind: str, weights: dict[str, Path | None]) -> None:
    name = kind.partition(",")[0]
    extractor: Any = make_extractor(name, weights[kind], device="cpu")
    assert {parameter.device for parameter in extractor.network.parameters()} == {torch.device("cpu")}
    assert extractor.files.device == "cpu", "what is made again from its name and files computes there, too"
    assert extractor.fingerprint == make_extractor(name, weights[kind]).fingerprint
    with pytest.raises(ConfigError, match=f"there is no device '{NOWHERE}'"):
        make_extractor(name, weights[kind], device=NOWHERE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_grid_says_the_same_on_a_gpu() -> None:
    on_cpu, on_gpu = make_extractor("grid", device="cpu"), make_extractor("grid", device="cuda")
    assert on_cpu.fingerprint == on_gpu.fingerprint
    photos = list(np.random.default_rng(0).integers(0, 256, size=(5, 224, 224, 3), dtype=np.uint8))
    for one, other in zip(on_cpu(photos), on_gpu(photos), strict=True):
        cosines = (one.features * other.features).sum(axis=1)
        cosines /= np.linalg.norm(one.features, axis=1) * np.linalg.norm(other.features, axis=1)
        assert cosines.min() > 0.999


@pytest.mark.parametrize("kind", ["run", "scan", "exported"])
def test_a_model_is_told_where_and_says_where_it_is_not_there(kind: str, world: dict[str, Path]) -> None:
    assert vsrn.load(world[kind], "cpu").device == "cpu"
    with pytest.raises(ConfigError, match=f"there is no device '{NOWHERE}'"):
        # An export asks for torch, and so for the device, when it first reads a photo.
        vsrn.load(world[kind], NOWHERE).encode_images([world["photo"]])


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "{photos}", "-o", "{new}"],
        ["evaluate", "{run}", "--split", "dev"],
        ["evaluate", "{run}", "--split", "dev", "--rerank", "{scan}"],
        ["index", "{photos}", "-o", "{new}", "--model", "{exported}"],
        ["search", "{idx}", "--image", "{photo}"],
        ["search", "{idx}", SENTENCE, "--rerank", "{scan}"],
        ["caption", "{photo}", "--model", "{exported}"],
        ["explain", "{photo}", SENTENCE, "--model", "{exported}", "--json"],
        ["serve", "{idx}", "--port", "0"],
    ],
    ids=" ".join,
)
def test_every_command_that_computes_takes_a_device(
    arguments: list[str], world: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = [argument.format(**world) for argument in arguments]
    assert run_command(command, [*rest, "--device", NOWHERE]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "error" in line] == [f"error: {COMPLAINT}"]
    assert not world["new"].exists()


@pytest.mark.parametrize("command", ["extract", "evaluate", "index", "search", "caption", "explain", "serve"])
def test_the_help_says_it_in_the_same_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(command, ["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--device DEVICE" in words
    assert "Where to compute: cpu, cuda, mps, or auto for the best there is." in words
