"""`vsrn.train`, loggers, and the record of a run."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from training_runs import Silent, assert_same_run, train
from worlds import make_store

import vsrn
from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, TrainConfig, config_to_toml
from vsrn.errors import ConfigError
from vsrn.training.checkpoint import read_log, read_record


@pytest.fixture
def config(tmp_path: Path) -> Config:
    store = make_store(tmp_path / "store", {"train": 40, "dev": 12})
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(joint_dim=16, word_dim=8, reasoning_layers=1, captioner=CaptionerConfig(enabled=False)),
        train=TrainConfig(batch_size=16, epochs=2, learning_rate_drop=[], validate_every=3, device="cpu"),
    )


def test_python_trains_as_the_command_does(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "expected")
    (tmp_path / "mine.toml").write_text(config_to_toml(config))
    for place, given in enumerate((config, msgspec.to_builtins(config), tmp_path / "mine.toml")):
        run = vsrn.train(given, output=tmp_path / str(place))
        assert_same_run(tmp_path / "expected", run.folder)
    best = [row for row in read_log(run.folder) if row["step"] == run.best_step and "validation" in row]
    assert run.validation == best[0]["validation"]
    assert run.best_rsum == pytest.approx(run.validation["rsum"], abs=0.005)
    assert (run.finished, run.early, run.step) == (True, False, 10)
    assert vsrn.load(run.folder).encode_captions(["a dog"]).shape == (1, 16)


def test_settings_change_fields_and_a_stopped_run_goes_on(config: Config, tmp_path: Path) -> None:
    whole = vsrn.train(config, output=tmp_path / "whole", settings={"train.epochs": 1, "model.joint_dim": 8})
    settings = {"train.epochs": 1, "model.joint_dim": 8}
    cut = vsrn.train(config, output=tmp_path / "cut", settings=settings, reporter=Silent(stop_after=2))
    assert (cut.finished, cut.step, cut.best_rsum, cut.validation) == (False, 2, None, {})
    rest = vsrn.train(tmp_path / "cut", output=tmp_path / "cut", resume=True)
    assert dataclasses.replace(rest, folder=whole.folder) == whole
    assert_same_run(whole.folder, rest.folder)
    with pytest.raises(ConfigError, match=r"no field train\.lr\. Did you mean 'train\.learning_rate'"):
        vsrn.train(config, output=tmp_path / "no", settings={"train.lr": 1})
    with pytest.raises(ConfigError, match=r"model\.joint_dim must be at least 1"):
        vsrn.train({"model": {"joint_dim": 0}}, output=tmp_path / "no")


def test_a_packaged_config_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 12, "dev": 6})
    settings = {"data.path": str(store), "model.joint_dim": 8, "train.max_steps": 1, "train.batch_size": 4}
    run = vsrn.train("f30k", output=tmp_path / "run", settings=settings | {"data.min_count": 1})
    assert run.step == 1


def test_pythons_logger_is_told(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vsrn"):
        vsrn.train(config, output=tmp_path / "run", settings={"train.learning_rate_drop": [9]})
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO", "INFO", "INFO"]
    assert "train.learning_rate_drop [9] lies beyond the last of 2 epochs" in caplog.messages[0]


class Collecting:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def log_metrics(self, step: int, values: dict[str, float], /) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_a_logger_gets_every_number_of_the_log(config: Config, tmp_path: Path) -> None:
    given, registered = Collecting(), Collecting()
    made: list[tuple[Any, ...]] = []

    def factory(run: Path, its: Config, step: int) -> Collecting:
        made.append((run, its.train.epochs, step))
        return registered

    vsrn.register_logger("collecting", factory)
    run = vsrn.train(config, output=tmp_path / "run", settings={"train.loggers": ["collecting"]}, loggers=[given])
    assert made == [(run.folder, 2, 0)]
    assert given.rows == registered.rows
    assert (given.finished, registered.finished) == (1, 1)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in given.rows] == [row["step"] for row in rows]
    for (_, values), row in zip(given.rows, rows, strict=True):
        if "validation" in row:
            assert values["validation/rsum"] == row["validation"]["rsum"]
        else:
            assert values["matching_loss"] == row["matching_loss"]
    assert not list(run.folder.glob("events.*")), "TensorBoard was not asked for"


def test_a_logger_that_nobody_registered_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.loggers is 'wanbd', .* Did you mean 'wandb'"):
        vsrn.train(config, output=tmp_path / "run", settings={"train.loggers": ["wanbd"]})


def test_weights_and_biases_get_the_curves_offline(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = {"train.loggers": ["wandb"]}
    vsrn.train(config, output=tmp_path / "run", settings=settings, reporter=Silent(stop_after=4))
    vsrn.train(tmp_path / "run", output=tmp_path / "run", resume=True)
    files = list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    content = b"".join(file.read_bytes() for file in files)
    assert b"matching_loss" in content
    assert b"validation/rsum" in content
    # Both parts belong to one run.
    name = (tmp_path / "run/state/wandb-id.txt").read_text()
    assert all(name in file.name for file in files)


def test_without_weights_and_biases_the_remedy_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # As where it is not installed.
    with pytest.raises(ConfigError, match=r"pip install '\.\[wandb\]'"):
        vsrn.train(config, output=tmp_path / "run", settings={"train.loggers": ["wandb"]})
    assert not (tmp_path / "run").exists()


def test_a_run_records_versions_command_and_time_of_each_start(config: Config, tmp_path: Path) -> None:
    vsrn.train(config, output=tmp_path / "run", reporter=Silent(stop_after=4))
    vsrn.train(config, output=tmp_path / "run", resume=True)
    first, second = read_record(tmp_path / "run")
    assert (first["from_step"], first["to_step"]) == (0, 4)
    assert (second["from_step"], second["to_step"]) == (4, 10)
    assert first["versions"]["torch"] == str(torch.__version__)
    assert first["versions"]["vsrn"] == vsrn.__version__
    assert first["versions"]["python"] == sys.version.split()[0]
    assert isinstance(first["seconds"], float)
    assert first["command"]
    assert second["device"] == "cpu"


def test_a_damaged_record_does_not_stop_a_run(config: Config, tmp_path: Path) -> None:
    vsrn.train(config, output=tmp_path / "run", reporter=Silent(stop_after=4))
    (tmp_path / "run/run.json").write_bytes(b"\xff{")
    assert vsrn.train(config, output=tmp_path / "run", resume=True).finished
    assert [start["from_step"] for start in read_record(tmp_path / "run")] == [4]
