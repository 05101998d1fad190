"""Models saved, sent to a hub on this machine and fetched from it: the same embeddings, and nothing else fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from colours import FEATURE_DIM, colour_model
from fake_hub import TOKEN, FakeHub, fake_hub
from training_runs import train
from worlds import make_model, make_store

import vsrn
from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, TrainConfig
from vsrn.data.splits import open_split
from vsrn.encoders.export import export_onnx
from vsrn.encoders.hub import FILES
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError
from vsrn.metrics import rank_blocks, retrieval_metrics
from vsrn.model.saved import write_model

SENTENCES = ["dark red", "light blue green"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    stored = colour_model(captioner=CaptionerConfig(hidden_dim=8, word_dim=4, max_tokens=5))
    config = replace(stored.config, data=replace(stored.config.data, path="/home/somebody/private/f30k"))
    write_model(folder / "run", replace(stored, config=config))
    export_onnx(stored, folder / "exported")
    return folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


def features() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((3, 5, FEATURE_DIM)).astype(np.float32)


def python(hub: FakeHub, folder: Path, program: str, *, token: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with the hub for Hugging Face's."""
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    head = "import vsrn, numpy as np\n"
    return subprocess.run(
        [sys.executable, "-c", head + program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_a_model_that_is_saved_is_the_same_and_can_be_saved_again(kind: str, models: Path, tmp_path: Path) -> None:
    model, place = vsrn.load(models / kind, "cpu"), tmp_path / "saved"
    for _ in range(2):
        assert model.save_pretrained(place) == place
        same = vsrn.Encoder.from_pretrained(place, device="cpu")
        np.testing.assert_array_equal(same.encode_regions(features()), model.encode_regions(features()))
        np.testing.assert_array_equal(same.encode_captions(SENTENCES), model.encode_captions(SENTENCES))
        assert same.caption_regions(features()) == model.caption_regions(features())
        assert same.fingerprint == model.fingerprint
        assert type(same) is type(model)
    assert {file.name for file in place.iterdir()} <= {*FILES, "README.md"}
    assert (
        "/home/somebody" not in (place / "config.toml").read_text() + (place / "README.md").read_text() or kind != "run"
    )
    (place / "README.md").write_text("mine\n")
    (place / "extractor_names.json").write_text("stale")
    model.save_pretrained(place)
    assert (place / "README.md").read_text() == "mine\n"
    assert not (place / "extractor_names.json").exists()
    with pytest.raises(CheckpointError, match="of the other kind"):
        vsrn.load(models / ("exported" if kind == "run" else "run"), "cpu").save_pretrained(place)


def test_what_was_trained_in_memory_is_saved_as_it_is_now(models: Path, tmp_path: Path) -> None:
    model = vsrn.load(models / "run", "cpu")
    assert isinstance(model, TorchEncoder)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "saved")
    same = vsrn.load(tmp_path / "saved", "cpu")
    np.testing.assert_array_equal(same.encode_regions(features()), model.encode_regions(features()))
    assert same.fingerprint == model.fingerprint


def test_a_scan_can_be_saved(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"dev": 6})
    model = vsrn.load(make_model(tmp_path / "scan", store, kind="scan"), "cpu")
    same = vsrn.load(model.save_pretrained(tmp_path / "saved"), "cpu")
    regions = open_split(store, "dev").read_images(np.arange(6))[0]
    np.testing.assert_array_equal(same.compare(regions, None, "a dog"), model.compare(regions, None, "a dog"))


def test_a_card_has_the_numbers_of_its_run_and_none_of_other_weights(tmp_path: Path) -> None:
    store = make_store(tmp_path / "my store", {"train": 24, "dev": 8})
    sizes = ModelConfig(joint_dim=16, word_dim=8, reasoning_layers=1, captioner=CaptionerConfig(enabled=False))
    settings = TrainConfig(epochs=2, batch_size=8, validate_every=2, learning_rate_drop=[], device="cpu")
    train(Config(data=DataConfig(path=str(store), min_count=1), model=sizes, train=settings), tmp_path / "run")
    model, split = vsrn.load(tmp_path / "run", "cpu"), open_split(store, "dev")
    similarities = model.compare(*split.read_images(np.arange(8)), split.captions)
    wanted = retrieval_metrics(rank_blocks(lambda: [(0, similarities)], split.image_of_caption)).to_json()
    card = (model.save_pretrained(tmp_path / "saved") / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    (result,) = head["model-index"][0]["results"]
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found["rsum"] == wanted["rsum"]
    assert found["image to text R@5"] == wanted["image_to_text"]["recall_at_5"]
    assert found["text to image R@1"] == wanted["text_to_image"]["recall_at_1"]
    assert result["dataset"]["name"] == "my store"
    assert head["library_name"] == "vsrn"
    assert str(tmp_path) not in card
    with pytest.raises(CheckpointError, match="is a run"):
        model.save_pretrained(tmp_path / "run")
    assert isinstance(model, TorchEncoder)
    with torch.no_grad():
        next(model.model.parameters()).mul_(2)
    changed = (model.save_pretrained(tmp_path / "changed") / "README.md").read_text()
    assert "model-index" not in yaml.safe_load(changed.split("---")[1])


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_a_model_goes_to_the_hub_and_comes_back(kind: str, models: Path, hub: FakeHub, tmp_path: Path) -> None:
    send = (
        f"model = vsrn.load({str(models / kind)!r}, 'cpu')\n"
        f"for _ in range(2): print(model.push_to_hub('me/matcher', private=True, token={TOKEN!r}))\n"
    )
    sent = python(hub, tmp_path / "sender", send)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.startswith(f"{hub.address}/me/matcher/commit/")
    assert hub.private == {"me/matcher"}
    assert 'vsrn.load("me/matcher")' in hub.repositories["me/matcher"]["README.md"].decode()
    hub.repositories["me/matcher"] |= {
        "evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"no",
        "extractor.pth": b"no",
    }
    read = (
        "model = vsrn.load('me/matcher', 'cpu')\n"
        f"np.save('found.npy', model.encode_regions(np.load({str(tmp_path / 'features.npy')!r})))\n"
    )
    np.save(tmp_path / "features.npy", features())
    got = python(hub, tmp_path / "reader", read, token=TOKEN)
    assert got.returncode == 0, got.stderr
    wanted = vsrn.load(models / kind, "cpu").encode_regions(features())
    np.testing.assert_array_equal(np.load(tmp_path / "reader" / "found.npy"), wanted)
    fetched = {path.name for path in (tmp_path / "reader" / "home").rglob("snapshots/*/*")}
    assert fetched == hub.repositories["me/matcher"].keys() & {*FILES}
    refused = python(hub, tmp_path / "stranger", read)
    assert refused.returncode == 1
    assert "CheckpointError: there is no folder me/matcher, and the hub has no 'me/matcher' for you" in refused.stderr


def test_a_revision_a_token_and_a_cache_are_the_hubs(models: Path, hub: FakeHub, tmp_path: Path) -> None:
    vsrn.load(models / "run", "cpu").save_pretrained(tmp_path / "saved")
    hub.repositories["me/matcher"] = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    hub.repositories["me/other"] = {"model.bin": b""}
    hub.private.add("me/matcher")
    program = f"options = dict(token={TOKEN!r}, cache_dir='here', device='cpu')\n" + (
        "print(vsrn.Encoder.from_pretrained('me/matcher', revision='main', **options))\n"
        "for name, revision in (('me/matcher', 'v9'), ('me/other', None), ('me/none', None)):\n"
        "    try: vsrn.Encoder.from_pretrained(name, revision=revision, **options)\n"
        "    except vsrn.VsrnError as error: print(error)\n"
    )
    done = python(hub, tmp_path / "reader", program)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("<TorchEncoder: vsrn")
    assert "has no such revision" in lines[1]
    assert "is no model of vsrn" in lines[2]
    assert "the hub has no 'me/none'" in lines[3]
    assert (tmp_path / "reader" / "here").is_dir()
    assert not (tmp_path / "reader" / "home" / "hub").exists()


def test_the_hub_is_asked_only_for_a_name_that_can_be_no_path_here(models: Path, hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "place" / "runs").mkdir(parents=True)
    (tmp_path / "place" / "me").mkdir()
    (tmp_path / "place" / "me" / "matcher").symlink_to(models / "run")
    (tmp_path / "place" / "file").write_text("")
    program = (
        "from pathlib import Path\n"
        "assert vsrn.load('me/matcher', 'cpu').has_captioner\n"
        "names = ['runs/mine', './you/mine', '/you/mine', 'you/mine/best', '../you', 'mine', 'you/m.pth.tar']\n"
        "for name in [*names, Path('you/mine'), 'file']:\n"
        "    try: vsrn.load(name)\n"
        "    except vsrn.VsrnError as error: print(error)\n"
    )
    done = python(hub, tmp_path / "place", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("there is no folder") == 8
    assert "file is a file; name the folder of a run or of an exported model.\n" in done.stdout
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path) -> None:
    hub = FakeHub(address="http://127.0.0.1:9")
    program = "try: vsrn.load('you/mine')\nexcept vsrn.VsrnError as error: print(error)\n"
    done = python(hub, tmp_path / "place", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the hub did not serve 'you/mine' (")
