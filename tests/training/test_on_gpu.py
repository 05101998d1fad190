"""Training on a GPU: steps that are recorded as CUDA graphs are the steps that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Silent, assert_same_run, train
from worlds import make_store

from vsrn.config import CaptionerConfig, Config, DataConfig, LossConfig, ModelConfig, ScanConfig, TrainConfig
from vsrn.training import batches
from vsrn.training.checkpoint import read_log
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


MODELS: list[dict[str, Any]] = [
    {},
    {"caption_bidirectional": True, "caption_aggregator": "gpo"},
    {"kind": "scan", "scan": ScanConfig("text_to_image")},
    {"kind": "scan", "scan": ScanConfig("image_to_text")},
]


def config_of(folder: Path, *, graphs: bool, drop: float = 0.0, dropout: float = 0.0, **model: Any) -> Config:
    store = folder / "store"
    if not store.exists():
        make_store(store, {"train": 60, "dev": 12})
    captioner = CaptionerConfig(hidden_dim=8, word_dim=8, max_tokens=6, dropout=dropout)
    is_scan = model.get("kind") == "scan"
    of_vsrn = {} if is_scan else {"reasoning_layers": 1, "captioner": captioner}
    # At 5e-3 SCAN is chaotic here: on a CPU, noise of 1e-7 in the regions changes losses by up to 9 % within 40 steps.
    learning_rate = 1e-3 if is_scan else 5e-3
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(**{"joint_dim": 16, "word_dim": 8, **of_vsrn, **model}),
        loss=LossConfig(warm_up_epochs=1),
        train=TrainConfig(
            batch_size=12, epochs=4, learning_rate=learning_rate, validate_every=7, device="cuda", drop_regions=drop,
            cuda_graphs=graphs,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("model", MODELS)
def test_recorded_steps_are_the_others_over_many_validations(
    tmp_path: Path, drop: float, model: dict[str, Any]
) -> None:
    losses = []
    for graphs in (True, False):
        run = tmp_path / f"graphs-{graphs}"
        trainer = Trainer(
            prepare_run(config_of(tmp_path, graphs=graphs, drop=drop, **model), run, resume=False), Silent()
        )
        trainer.run(resume=False)
        assert (trainer.passes.graphs is not None) is graphs
        assert trainer.passes.graphs is None or not trainer.passes.graphs.failure
        losses.append([row["loss"] for row in read_log(run) if "loss" in row])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-2, atol=0)


def test_a_run_that_is_cut_between_validations_equals_the_unbroken_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, graphs=True, drop=0.3, dropout=0.2)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop_after=11)
    train(config, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_a_run_with_its_regions_on_the_gpu_equals_one_that_reads_them_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop: float
) -> None:
    config = config_of(tmp_path, graphs=True, drop=drop, dropout=0.2)
    train(config, tmp_path / "kept")
    monkeypatch.setattr(batches, "SHARE", 0.0)
    train(config, tmp_path / "read")
    assert_same_run(tmp_path / "kept", tmp_path / "read")
