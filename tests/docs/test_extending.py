"""docs/extending.md: each of its parts works as it stands, and nothing but `--plugin` imports one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_guides import ROOT
from training_runs import train
from worlds import make_store

import vsrn
from vsrn.cli import run_command
from vsrn.cli.options import import_plugins
from vsrn.config import CaptionerConfig, Config, DataConfig, LossConfig, ModelConfig, TrainConfig, config_to_toml
from vsrn.encoders.export import export_onnx
from vsrn.errors import CheckpointError, ConfigError
from vsrn.model.saved import StoredModel, model_fingerprint, read_model
from vsrn.training.checkpoint import STATE_FILE

PARTS = dict(
    re.findall(r'^```python title="([^"]+)\.py"\n(.*?)^```$', (ROOT / "docs/extending.md").read_text(), re.M | re.S)
)
FOR_TRAINING = [name for name in PARTS if name != "quarters"]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path with the guide's modules."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name, code in PARTS.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Config:
    sizes = ModelConfig(joint_dim=16, word_dim=8, captioner=CaptionerConfig(enabled=False))
    store = make_store(tmp_path / "store", {"train": 40, "dev": 12, "test": 10})
    recipe = TrainConfig(batch_size=16, epochs=3, learning_rate_drop=[], learning_rate=5e-3, validate_every=4)
    return Config(DataConfig(path=str(store), min_count=1), sizes, LossConfig(), recipe)


def with_parts(config: Config, **fields: object) -> Config:
    model = {"aggregator": "softmax", "text_encoder": "bag-of-words"} | fields
    return Config(
        config.data,
        ModelConfig(**{"joint_dim": 16, "word_dim": 8, "captioner": CaptionerConfig(enabled=False)} | model),  # type: ignore[arg-type]
        LossConfig(matching="learned-temperature"),
        config.train,
    )


def test_each_part_takes_forty_lines_at_most() -> None:
    assert len(PARTS) == 5
    assert {name: len(code.splitlines()) for name, code in PARTS.items() if len(code.splitlines()) > 40} == {}


@pytest.mark.parametrize("kind", ["vsrn", "perceptron"])
@pytest.mark.usefixtures("plugins")
def test_a_model_of_the_parts_trains_by_the_command_and_is_evaluated(
    kind: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(config_to_toml(with_parts(config, kind=kind)))
    named = ["--plugin", *FOR_TRAINING]
    assert run_command("train", [str(tmp_path / "mine.toml"), "-o", str(tmp_path / "run"), *named]) == 0
    assert run_command("evaluate", [str(tmp_path / "run"), "--split", "test", "--json", *named]) == 0
    assert '"rsum"' in capsys.readouterr().out
    assert vsrn.load(tmp_path / "run").encode_captions(["red dog"]).shape == (1, 16)

    # Without the plugin: one sentence, whatever lies beside the model. Another process has none of them registered.
    marker = tmp_path / "imported"
    for name in FOR_TRAINING:
        (tmp_path / "run" / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    done = subprocess.run(
        [sys.executable, "-c", "from vsrn.cli import main; main()", "evaluate", ".", "--split", "test"],
        cwd=tmp_path / "run",
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    field, name = ("model.kind", "perceptron") if kind == "perceptron" else ("model.aggregator", "softmax")
    assert done.returncode == 2, done.stderr
    assert f"config.toml: {field} is '{name}', which is none of" in done.stderr
    assert "--plugin" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not marker.exists()


@pytest.mark.usefixtures("plugins")
def test_a_learned_parameter_of_a_loss_is_trained_kept_and_resumed(config: Config, tmp_path: Path) -> None:
    import_plugins(FOR_TRAINING)
    config = with_parts(config)
    train(config, tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / STATE_FILE)
    start = torch.tensor(0.05).log()
    assert abs(whole["loss.log_temperature"] - start) > 1e-3
    assert "optimizer.exp_avg.loss.log_temperature" in whole
    # What only training needs is not in the model that travels.
    assert not any(name.startswith("loss") for name in load_file(tmp_path / "whole" / "model.safetensors"))

    train(config, tmp_path / "cut", stop_after=5)
    train(config, tmp_path / "cut", resume=True)
    cut = load_file(tmp_path / "cut" / STATE_FILE)
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


@pytest.mark.usefixtures("plugins")
def test_a_part_without_weights_changes_the_fingerprint(config: Config, tmp_path: Path) -> None:
    import_plugins(FOR_TRAINING)
    plain = replace(config, model=replace(config.model, aggregator="mean"))
    train(plain, tmp_path / "run")
    stored = read_model(tmp_path / "run")
    other = replace(stored.config, model=replace(stored.config.model, aggregator="softmax"))
    assert model_fingerprint(stored) != model_fingerprint(StoredModel(other, stored.vocabulary, stored.model))


@pytest.mark.usefixtures("plugins")
def test_an_aggregator_is_exported_and_another_text_encoder_is_refused(config: Config, tmp_path: Path) -> None:
    import_plugins(FOR_TRAINING)
    train(with_parts(config, text_encoder="gru"), tmp_path / "run")
    stored = read_model(tmp_path / "run")
    export_onnx(stored, tmp_path / "onnx")
    captions = ["red dog runs", "blue boat"]
    ours, theirs = vsrn.load(tmp_path / "onnx").encode_captions(captions), vsrn.load(tmp_path / "run")
    assert abs(ours - theirs.encode_captions(captions)).max() < 1e-5

    train(with_parts(config), tmp_path / "bag")
    with pytest.raises(CheckpointError, match="cannot be exported"):
        export_onnx(read_model(tmp_path / "bag"), tmp_path / "refused")


@pytest.mark.parametrize(
    ("register", "name"),
    [("aggregator", "mean"), ("loss", "triplet"), ("text_encoder", "gru"), ("model", "vsrn")],
)
def test_a_name_that_is_taken_is_refused(register: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is already taken"):
        getattr(vsrn, f"register_{register}")(name, lambda *_: None)


@pytest.mark.parametrize(
    ("field", "near"),
    [("model.aggregator", "gpo"), ("model.caption_aggregator", "gpo"), ("loss.matching", "triplet")],
)
def test_a_name_that_nobody_registered_is_answered_by_those_there_are(
    field: str, near: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(config_to_toml(config))
    wrong = near.replace("o", "0").replace("pl", "lp")
    assert run_command("train", [str(tmp_path / "mine.toml"), f"--{field}", wrong]) == 2
    said = capsys.readouterr().err
    assert f"mine.toml: {field} is '{wrong}', which is none of" in said
    assert f"Did you mean '{near}'?" in said


def test_a_plugin_that_cannot_be_imported_is_one_sentence(plugins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (plugins / "broken.py").write_text("1 / 0")
    for name, reason in (("broken", "division by zero"), ("not.there", "No module named")):
        assert run_command("train", ["f30k", "--plugin", name]) == 2
        assert re.fullmatch(rf"error: --plugin {name} cannot be imported \(.*{reason}.*\n", capsys.readouterr().err)


@pytest.mark.skipif(not hasattr(vsrn, "register_extractor"), reason="extractors are registered by another module")
@pytest.mark.usefixtures("plugins")
def test_an_extractor_extracts_by_the_command(tmp_path: Path) -> None:
    from colours import save_photo

    for number in range(3):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    arguments = [str(tmp_path / "photos"), "-o", str(tmp_path / "store"), "--extractor", "quarters"]
    assert run_command("extract", [*arguments, "--plugin", "quarters"]) == 0
    assert len(list((tmp_path / "store").glob("*_ims.npy"))) == 1
