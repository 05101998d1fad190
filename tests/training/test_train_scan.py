"""SCAN in the training loop that VSRN has: it learns, resumes bit for bit, and shares batches among processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import take_steps
from training_runs import assert_same_run, train
from worlds import make_store

from vsrn.config import Config, DataConfig, ModelConfig, ScanConfig, TrainConfig
from vsrn.data.splits import open_split
from vsrn.encoders import load_encoder
from vsrn.metrics import rank_blocks, retrieval_metrics
from vsrn.training.checkpoint import STATE_FILE, read_log


@pytest.fixture
def config(tmp_path: Path) -> Config:
    store = make_store(tmp_path / "store", {"train": 40, "dev": 12})
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(kind="scan", joint_dim=16, word_dim=8),
        train=TrainConfig(
            batch_size=16, epochs=4, learning_rate=5e-3, learning_rate_drop=[3], validate_every=7, device="cpu"
        ),
    )


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_training_learns_what_the_data_says(config: Config, tmp_path: Path, direction: Any) -> None:
    config = replace(
        config,
        model=replace(config.model, scan=ScanConfig(direction)),
        train=replace(config.train, epochs=30, learning_rate_drop=[], validate_every=0),
    )
    result = train(config, tmp_path / "run")
    # By chance, 12 images of 2 captions each give R@1/5/10 that sum to about 250 in both directions.
    assert result.progress.best_rsum is not None
    assert result.progress.best_rsum > 400
    rows = [row for row in read_log(tmp_path / "run") if "loss" in row]
    assert rows[-1]["matching_loss"] < 0.75 * rows[0]["matching_loss"]
    assert {row["generation_loss"] for row in rows} == {0.0}
    # What is on disk is what was validated.
    split = open_split(config.data.path, "dev")
    table = load_encoder(tmp_path / "run").encode_split(split).similarities()
    kept = retrieval_metrics(rank_blocks(lambda: [(0, table)], split.image_of_caption))
    assert kept.rsum == pytest.approx(result.progress.best_rsum)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_cut_in_pieces_equals_the_unbroken_one(config: Config, tmp_path: Path, precision: Any) -> None:
    config = replace(config, train=replace(config.train, precision=precision))
    assert train(config, tmp_path / "whole").finished
    for place, cut in enumerate([3, 7, 12]):
        train(config, tmp_path / "cut", resume=place > 0, stop_after=cut)
        torch.manual_seed(place)
    assert train(config, tmp_path / "cut", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert any("word_encoder.gru" in name for name in load_file(tmp_path / "whole" / STATE_FILE))


def test_two_processes_take_the_same_steps_as_one(config: Config, tmp_path: Path) -> None:
    one, two = take_steps(config, tmp_path, 1), take_steps(config, tmp_path, 2)
    for alone, shared in zip(one["steps"], two["steps"], strict=True):
        torch.testing.assert_close(shared["losses"], alone["losses"], rtol=1e-5, atol=0)
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(shared["gradients"][name], gradient, rtol=1e-4, atol=1e-8, msg=name)
