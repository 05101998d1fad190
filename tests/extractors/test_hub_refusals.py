"""A stranger's folder names an extractor: nothing is downloaded, no code of it runs, and one sentence says why."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from colours import export_colours, save_photo
from listening import Ear, listening
from safetensors.torch import save_file
from torchvision.models import get_model, get_model_weights

from vsrn.config import Config, DataConfig, ModelConfig, NetworkConfig
from vsrn.data.vocabulary import build_vocabulary
from vsrn.errors import ConfigError
from vsrn.extractors.base import make_extractor
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, write_model

NAMES = ["hf:someone/model", "timm:resnet18.a1_in1k", "torchvision:fasterrcnn_resnet50_fpn"]
EVIL = "import pathlib\npathlib.Path({target!r}).write_text('code of a model ran')\nclass Evil: pass\n"


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    with listening(tmp_path / "listening") as ear:
        yield ear


def hostile_model(folder: Path, extractor: str) -> Path:
    """An exported model that says that another extractor made what it learned from."""
    export_colours(folder)
    page = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(page | {"extractor": extractor}))
    return folder


def model_with_code(folder: Path, target: Path, **config: Any) -> Path:
    """A folder in Hugging Face's layout whose config, processor and model are classes of a file in it."""
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(target=str(target)))
    auto = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto} | config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Evil", "auto_map": auto}))
    return folder


def run(ear: Ear, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run vsrn with a terminal for its input that would answer every question by yes."""
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    try:
        return subprocess.run(
            [sys.executable, "-m", "vsrn", *arguments],
            cwd=folder,
            env=ear.environment,
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_model_may_not_have_its_extractor_downloaded(name: str, ear: Ear, tmp_path: Path) -> None:
    hostile_model(tmp_path / "model", name)
    save_photo(tmp_path / "photo.png", 1)
    done = run(ear, tmp_path, "explain", "photo.png", "red", "--model", "model", "-o", "why.png")
    assert_refused(done)
    assert f"the weights of '{name}' are not on this machine" in done.stderr
    assert f"vsrn extract PHOTOS -o STORE --extractor {name}" in done.stderr
    assert ear.heard == []


def test_code_that_lies_in_a_model_does_not_run(ear: Ear, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    hostile_model(tmp_path / "model", "hf:someone/model")
    model_with_code(tmp_path / "model" / "extractor.dir", tmp_path / "ran")
    save_photo(tmp_path / "photo.png", 1)
    done = run(ear, tmp_path, "explain", "photo.png", "red", "--model", "model", "-o", "why.png")
    assert_refused(done)
    assert "run the custom code" not in done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()
    assert ear.heard == []


@pytest.mark.parametrize("field", ["attn_implementation", "experts_implementation"])
def test_kernels_that_a_config_names_are_not_fetched(field: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=28, patch_size=7))
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {field: "someone/kernel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"code from 'someone/kernel', and no code of a model runs here"):
        make_extractor("hf:someone/model", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_person_types_is_asked_of_its_hub(name: str, ear: Ear, tmp_path: Path) -> None:
    save_photo(tmp_path / "photos" / "a.png", 1)
    done = run(ear, tmp_path, "extract", "photos", "-o", "store", "--extractor", name)
    assert_refused(done)
    assert "cannot be had from the hub" in done.stderr
    assert any("huggingface.co" in line or "download.pytorch.org" in line for line in ear.heard)


def test_what_was_downloaded_before_is_used_without_asking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = "fasterrcnn_resnet50_fpn"
    torch.manual_seed(1)
    network = get_model(name, weights=None, weights_backbone=None)
    file = tmp_path / "hub" / "checkpoints" / Path(get_model_weights(name).DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    cached = make_extractor(f"torchvision:{name}")
    assert cached.fingerprint == make_extractor(f"torchvision:{name}", file).fingerprint


def test_what_timm_downloaded_before_is_used_without_asking(ear: Ear, tmp_path: Path) -> None:
    torch.manual_seed(1)
    file = tmp_path / "resnet18.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in timm.create_model("resnet18").state_dict().items()}, file)
    # As huggingface_hub lays out its cache.
    repository = ear.home / ".cache" / "huggingface" / "hub" / "models--timm--resnet18.a1_in1k"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "model.safetensors").write_bytes(file.read_bytes())
    program = (
        "from vsrn.extractors.base import make_extractor; import sys;"
        "print(make_extractor('timm:resnet18.a1_in1k', *sys.argv[1:]).fingerprint)"
    )
    prints = [
        subprocess.run(
            [sys.executable, "-c", program, *weights], env=ear.environment, capture_output=True, text=True, check=True
        ).stdout
        for weights in ([], [str(file)])
    ]
    assert prints[0] == prints[1]
    assert ear.heard == []


def test_a_runs_network_is_not_downloaded_when_the_run_is_opened(ear: Ear, tmp_path: Path) -> None:
    """A config's `weights = "hub"` is what a fresh `vsrn train` starts from; a run that is opened has its own."""
    network = NetworkConfig(name="resnet18", weights="hub", photo_size=36, crop_size=32)
    model = ModelConfig(kind="vsepp", feature_dim=512, joint_dim=16, word_dim=8, network=network)
    config = Config(data=DataConfig(photos="photos", annotations="captions.json"), model=model)
    vocabulary = build_vocabulary(["a red dog"], min_count=1)
    write_model(tmp_path / "run", StoredModel(config, vocabulary, build_model(config, vocabulary)))
    save_photo(tmp_path / "a.png", 1)
    program = "import vsrn; print(vsrn.load('run').encode_images(['a.png']).shape)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ear.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(1, 16)"
    assert ear.heard == []


def test_a_scheme_in_a_name_of_timm_is_no_way_around() -> None:
    with pytest.raises(ConfigError, match="timm has no network 'hf-hub:someone/model'"):
        make_extractor("timm:hf-hub:someone/model")
