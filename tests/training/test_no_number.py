"""Numbers that are none: the row, the gradient or the step is named, and no state on disk holds any."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import Silent, train
from worlds import make_model, make_store

from vsrn.cli import run_command
from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, TrainConfig, config_to_toml
from vsrn.data.region_store import open_region_store
from vsrn.errors import ConfigError, DataError, TrainingError
from vsrn.model.base import Batch
from vsrn.model.losses import TripletLoss
from vsrn.model.registry import build_model
from vsrn.training.batches import TrainingBatches
from vsrn.training.checkpoint import STATE_FILE, Progress
from vsrn.training.run import prepare_run, zeros_divide
from vsrn.training.trainer import Trainer

BLANK = 7


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", {"train": 20, "dev": 8})


@pytest.fixture
def config(store: Path) -> Config:
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(joint_dim=16, word_dim=8, reasoning_layers=2, captioner=CaptionerConfig(enabled=False)),
        train=TrainConfig(batch_size=8, epochs=8, learning_rate=5e-3, learning_rate_drop=[], device="cpu"),
    )


def blank(store: Path, split: str = "train", regions: slice = slice(None)) -> None:
    """Set regions of one image to zeros."""
    path = store / f"{split}_ims.npy"
    features = np.load(path)
    features[BLANK, regions] = 0
    np.save(path, features)


def assert_whole(run: Path) -> None:
    """No tensor on disk holds NaN or infinity."""
    for file in (run / STATE_FILE, run / "model.safetensors"):
        if file.exists():
            assert all(bool(t.isfinite().all()) for t in load_file(file).values() if t.is_floating_point()), file


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_an_image_of_zeros_is_named_by_its_row(
    ids: bool, counted: bool, config: Config, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank(store)
    if ids:
        (store / "train_ids.txt").write_text("".join(f"photo-{row}\n" for row in range(20)))
    if counted:
        counts = np.full(20, 5)
        counts[BLANK] = 2
        np.save(store / "train_counts.npy", counts)
        # What lies behind the real regions is padding, whatever it holds.
        features = np.load(store / "train_ims.npy")
        features[BLANK, 2:] = 1
        np.save(store / "train_ims.npy", features)
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    assert run_command("train", [str(tmp_path / "config.toml"), "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    name = f" (photo-{BLANK})" if ids else ""
    assert f"{store / 'train_ims.npy'}: row {BLANK}{name} is an image of zeros" in said
    assert "extract that image again, or take its row and its captions out." in said
    assert_whole(tmp_path / "run")


def test_padding_and_regions_of_zeros_beside_others_are_no_image_of_zeros(
    config: Config, store: Path, tmp_path: Path
) -> None:
    blank(store, regions=slice(0, 3))
    counts = np.full(20, 5)
    counts[3] = 1
    np.save(store / "train_counts.npy", counts)
    assert train(config, tmp_path / "run").finished


MODELS: list[dict[str, Any]] = [
    {"kind": "scan"},
    *({"kind": "vsepp", "image_norm": norm} for norm in (True, False)),
    *(
        {"normalisation": normalisation, "aggregator": aggregator, "image_norm": norm}
        for normalisation, aggregator, norm in itertools.product(
            ("coco", "flickr30k", "none"), ("gru", "mean", "gpo"), (True, False)
        )
    ),
]


@pytest.mark.parametrize("fields", MODELS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_the_models_that_refuse_are_those_that_divide_zero_by_zero(
    fields: dict[str, Any], config: Config, tmp_path: Path
) -> None:
    """A fresh model of each kind reads an image of zeros among others."""
    config = replace(config, model=replace(ModelConfig(joint_dim=16, word_dim=8), **fields))
    if config.model.kind == "vsrn":
        config = replace(config, model=replace(config.model, captioner=CaptionerConfig(hidden_dim=8, word_dim=8)))
    prepared = prepare_run(config, tmp_path / "run", resume=False)
    model = build_model(prepared.config, prepared.vocabulary).train()
    batch = next(TrainingBatches(prepared.train, prepared.vocabulary, 8, seed=0).epoch(0))
    features = batch.features.float()
    features[0] = 0
    losses = model(Batch(features, batch.tokens, batch.lengths, None), TripletLoss(config.loss))
    losses.joint.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    whole = all(bool(gradient.isfinite().all()) for gradient in gradients) and bool(losses.joint.isfinite())
    assert zeros_divide(config.model) == (not whole)


def test_an_image_of_zeros_that_a_trained_model_can_read_is_read(config: Config, store: Path, tmp_path: Path) -> None:
    """A trained projection has a bias, so what was published may be evaluated on sets that hold such images."""
    blank(store, "dev")
    assert train(config, tmp_path / "run").finished
    arguments = [str(tmp_path / "run"), "--split", "dev"]
    assert run_command("evaluate", arguments) == 0


def test_evaluation_names_the_image_that_has_no_number(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank(store, "dev")
    fresh = make_model(tmp_path / "fresh", store)
    assert run_command("evaluate", [str(fresh), "--split", "dev"]) == 2
    assert f"dev_ims.npy: row {BLANK} is an image of zeros" in capsys.readouterr().err


def test_regions_of_zeros_that_dropping_leaves_alone_are_named(config: Config, store: Path, tmp_path: Path) -> None:
    """Of every image the first region alone is none of zeros; the fresh model reads a batch that lacks some of them."""
    features = np.load(store / "train_ims.npy")
    features[:, 1:] = 0
    np.save(store / "train_ims.npy", features)
    config = replace(config, train=replace(config.train, drop_regions=1.0))
    with pytest.raises(DataError, match=r"row \d+ has regions of zeros beside others, and train\.drop_regions"):
        train(config, tmp_path / "run")
    assert_whole(tmp_path / "run")


class SpoilsAndStops(Silent):
    """Spoils the model before a step, and asks to stop after it, as Ctrl-C between two logged rows does."""

    def __init__(self, spoil_at: int, stop_at: int) -> None:
        super().__init__()
        self.spoil_at, self.stop_at = spoil_at, stop_at
        self.trainer: Trainer | None = None

    def stepped(self, progress: Progress, _row: dict[str, Any] | None) -> None:
        assert self.trainer is not None
        if progress.step == self.spoil_at:
            with torch.no_grad():
                next(self.trainer.model.parameters()).fill_(torch.nan)
        if progress.step == self.stop_at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("spoil_at", "stop_at", "said"),
    [(3, 4, r"the loss is nan at step 4"), (4, 4, r"a weight is no number after step 4"), (2, 7, r"nan at step 3")],
)
def test_a_run_that_is_stopped_between_two_rows_saves_no_nan(
    spoil_at: int, stop_at: int, said: str, config: Config, tmp_path: Path
) -> None:
    spoils = SpoilsAndStops(spoil_at, stop_at)
    spoils.trainer = Trainer(prepare_run(config, tmp_path / "run", resume=False), spoils)
    with pytest.raises(TrainingError, match=said):
        spoils.trainer.run(resume=False)
    assert_whole(tmp_path / "run")


def test_a_rate_that_is_too_high_is_named_with_its_step(config: Config, tmp_path: Path) -> None:
    config = replace(config, train=replace(config.train, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"is (nan|inf) at step \d+.*; lower train\.learning_rate\. The state"):
        train(config, tmp_path / "run")
    assert_whole(tmp_path / "run")
    bf16 = replace(config, train=replace(config.train, precision="bf16"))
    with pytest.raises(TrainingError, match=r'; set train\.precision to "fp32", or lower train\.learning_rate'):
        train(bf16, tmp_path / "bf16")


def test_vectors_of_zeros_are_named_too(config: Config, tmp_path: Path) -> None:
    """VSE++ on precomputed vectors: one, or ten of as many crops."""
    for crops in (1, 10):
        folder = tmp_path / f"vectors-{crops}"
        make_store(folder, {"train": 20, "dev": 8})
        features = np.load(folder / "train_ims.npy")[:, [0] * crops]
        features[BLANK] = 0
        np.save(folder / "train_ims.npy", features[:, 0] if crops == 1 else features)
        np.save(folder / "dev_ims.npy", np.load(folder / "dev_ims.npy")[:, [0] * crops])
        model = ModelConfig(kind="vsepp", joint_dim=16, word_dim=8)
        vsepp = replace(config, data=replace(config.data, path=str(folder)), model=model)
        with pytest.raises(DataError, match=rf"train_ims\.npy: row {BLANK} is an image of zeros"):
            train(vsepp, tmp_path / f"run-{crops}")


def test_reading_names_no_image_where_there_is_none(store: Path) -> None:
    regions = open_region_store(store, "train")
    rows = np.arange(len(regions))
    regions.check_zeros(rows, regions.read(rows))


def test_a_seed_beyond_what_numpy_takes_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.seed must be at least 0"):
        train(replace(config, train=replace(config.train, seed=-1)), tmp_path / "run")
