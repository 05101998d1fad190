"""`vsrn caption` on photos of plain colours, by a captioner that learned to name them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import Colours, colour_model
from PIL import Image
from safetensors.torch import load_file, save_file

import vsrn
from vsrn.cli import run_command
from vsrn.config import CaptionerConfig
from vsrn.encoders.export import export_onnx
from vsrn.encoders.onnx_backend import CAPTIONER_FILE
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError
from vsrn.model.saved import StoredModel, write_model
from vsrn.search.build import update_index

COLOURS = {
    "light red": (250, 90, 90),
    "dark red": (100, 0, 0),
    "light green": (90, 250, 90),
    "dark green": (0, 100, 0),
    "blue": (0, 0, 250),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A photo for each caption."""
    folder = tmp_path_factory.mktemp("photos")
    for caption, colour in COLOURS.items():
        Image.new("RGB", (30, 20), colour).save(folder / f"{caption}.png")
    return {caption: folder / f"{caption}.png" for caption in COLOURS}


@pytest.fixture(scope="module")
def stored(photos: dict[str, Path]) -> StoredModel:
    """A model whose captioner learned the colours by heart."""
    config = CaptionerConfig(hidden_dim=16, word_dim=8, dropout=0, max_tokens=8)
    stored = colour_model(captioner=config, normalisation="none", reasoning_layers=0)
    captioner, extractor = stored.model.captioner, Colours()
    assert captioner is not None
    regions = extractor([extractor.prepare(Image.open(path)) for path in photos.values()])
    features = torch.from_numpy(np.stack([image.features for image in regions]))
    with torch.no_grad():
        reasoned = stored.model.image_encoder(features).reasoned_regions
    captions = [torch.tensor(stored.vocabulary.encode(caption)) for caption in photos]
    tokens = torch.nn.utils.rnn.pad_sequence(captions, batch_first=True)
    lengths = torch.tensor([len(caption) for caption in captions])
    optimiser = torch.optim.Adam(captioner.train().parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        captioner.generation_loss(reasoned, tokens, lengths).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    stored.model.eval()
    return stored


@pytest.fixture(scope="module")
def models(stored: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "run", stored)
    export_onnx(stored, folder / "exported")
    export_onnx(stored, folder / "half", "fp16")
    return {name: folder / name for name in ("run", "exported", "half")}


@pytest.mark.parametrize("kind", ["run", "exported", "half"])
@pytest.mark.parametrize("beam", ["1", "3"])
def test_photos_are_called_by_their_colours(
    kind: str, beam: str, photos: dict[str, Path], models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(models[kind]), "--beam", beam]
    assert run_command("caption", [*map(str, photos.values()), *options]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{path}  {caption}" for caption, path in photos.items()]
    for caption, path in photos.items():
        assert run_command("caption", [str(path), *options]) == 0
        assert capsys.readouterr().out == f"{caption}\n"
        assert vsrn.load(models[kind]).caption(path) == caption


def test_json_says_how_sure_it_is(
    photos: dict[str, Path], models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("caption", [*map(str, photos.values()), "--model", str(models["exported"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["captions"]
    assert [(entry["image"], entry["caption"]) for entry in found] == [(str(path), c) for c, path in photos.items()]
    # Learned by heart: better than even chances for every word.
    assert all(-np.log(2) < entry["score"] < 0 for entry in found)


def test_photos_of_an_index_are_captioned_from_the_regions_it_keeps(
    photos: dict[str, Path], models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos["blue"].parent
    for name, explain in (("idx", True), ("bare", False)):
        update_index(folder, tmp_path / name, models["exported"], explain=explain)
    moved = folder.rename(folder.parent / "elsewhere")
    try:
        assert run_command("caption", ["--index", str(tmp_path / "idx"), "--id", "blue.png", "dark red.png"]) == 0
    finally:
        moved.rename(folder)
    assert capsys.readouterr().out.splitlines() == ["blue.png  blue", "dark red.png  dark red"]
    assert run_command("caption", ["--index", str(tmp_path / "bare"), "--id", "blue.png"]) == 2
    assert "made with --no-explain" in capsys.readouterr().err


def test_an_export_captions_as_its_model(stored: StoredModel, models: dict[str, Path]) -> None:
    features = np.random.default_rng(0).normal(size=(140, 5, Colours.feature_dim)).astype(np.float32)
    counts = np.random.default_rng(1).integers(1, 6, size=140)
    wanted = TorchEncoder(stored, "cpu").write_captions(features, counts)
    found = vsrn.load(models["exported"]).write_captions(features, counts)
    assert [caption.text for caption in found] == [caption.text for caption in wanted]
    np.testing.assert_allclose([c.score for c in found], [c.score for c in wanted], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name photos"),
        (["blue.png", "--index", "idx"], "name photos"),
        (["--index", "idx"], "name photos"),
        (["--id", "blue.png"], "name photos"),
        (["--index", "idx", "--id", "a", "--model", "m"], "name photos"),
        (["blue.png", "--model", "{exported}", "--beam", "0"], "--beam is 0; it must be 1 to 100"),
        (["nope.png", "--model", "{exported}"], "nope.png does not exist"),
        (["nope.png", "--model", "{plain}"], "has no captioner, so it cannot write captions"),
        (["nope.png", "--model", "{plain_export}"], "has no captioner, so it cannot write captions"),
        (["blue.png", "--model", "nope"], "there is no folder nope"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    sentence: str,
    photos: dict[str, Path],
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos["blue"].parent)
    write_model(tmp_path / "plain", colour_model())
    export_onnx(colour_model(), tmp_path / "plain_export")
    places = models | {name: tmp_path / name for name in ("plain", "plain_export")}
    assert run_command("caption", [argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert sentence in said.err
    assert said.out == ""


def test_a_captioner_that_does_not_belong_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    features = np.zeros((1, 2, Colours.feature_dim), dtype=np.float32)
    whole = load_file(models["exported"] / CAPTIONER_FILE)
    label = {"vsrn_model": json.loads((models["exported"] / "export.json").read_text())["model"]}
    spoiled = {
        "has no captioner.safetensors": None,
        "is not a readable safetensors file": (models["exported"] / CAPTIONER_FILE).read_bytes()[:-10],
        "is not from the model": (whole, {"vsrn_model": "0" * 64}),
        "misses output.bias;": ({name: tensor for name, tensor in whole.items() if name != "output.bias"}, label),
        "has in another shape output.bias ": (whole | {"output.bias": torch.zeros(3)}, label),
    }
    for number, (complaint, content) in enumerate(spoiled.items()):
        folder = shutil.copytree(models["exported"], tmp_path / str(number))
        (folder / CAPTIONER_FILE).unlink()
        if isinstance(content, bytes):
            (folder / CAPTIONER_FILE).write_bytes(content)
        elif content is not None:
            save_file(*content[:1], folder / CAPTIONER_FILE, content[1])
        with pytest.raises(CheckpointError, match=complaint):
            vsrn.load(folder).caption_regions(features)
