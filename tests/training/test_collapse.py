"""A run that is stuck on the hardest negatives says so once, with the remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import Silent
from worlds import make_store

from vsrn.config import CaptionerConfig, Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from vsrn.metrics import rank_blocks, retrieval_metrics
from vsrn.model.losses import matching_loss
from vsrn.training.checkpoint import read_log
from vsrn.training.collapse import at_chance, is_stuck
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer


class Listening(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def noted(self, note: str) -> None:
        self.notes.append(note)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Captions that say nothing about their images, so that equal similarities are the best answer."""
    store = make_store(tmp_path / "store", {"train": 64, "dev": 40})
    captions = (store / "train_caps.txt").read_text().splitlines()
    (store / "train_caps.txt").write_text("\n".join(["the same sentence"] * len(captions)) + "\n")
    model = ModelConfig(joint_dim=16, word_dim=8, reasoning_layers=1, captioner=CaptionerConfig(enabled=False))
    train = TrainConfig(batch_size=16, epochs=4, learning_rate=2e-2, validate_every=0, device="cpu")
    return Config(data=DataConfig(path=str(store), min_count=1), model=model, train=train)


def train(config: Config, run: Path, *, resume: bool = False) -> list[str]:
    reporter = Listening()
    Trainer(prepare_run(config, run, resume=resume), reporter).run(resume=resume)
    return [note for note in reporter.notes if "hardest negatives" in note]


def test_a_run_that_is_stuck_says_it_once_with_the_remedy(config: Config, tmp_path: Path) -> None:
    notes = train(config, tmp_path / "run")
    assert len(notes) == 1
    assert "2 x batch x margin = 6.4" in notes[0]
    assert "loss.warm_up_epochs" in notes[0]
    assert [row["note"] for row in read_log(tmp_path / "run") if "hardest" in row.get("note", "")] == notes
    # Nor again when it goes on.
    longer = replace(config, train=replace(config.train, epochs=5))
    assert train(longer, tmp_path / "run", resume=True) == []


@pytest.mark.parametrize(
    "loss", [LossConfig(negatives="all"), LossConfig(warm_up_epochs=9), LossConfig(matching="contrastive")]
)
def test_other_losses_are_not_suspected(config: Config, tmp_path: Path, loss: LossConfig) -> None:
    assert train(replace(config, loss=loss), tmp_path / "run") == []


def test_the_loss_of_equal_similarities_is_the_limit() -> None:
    equal = float(matching_loss(torch.full((8, 8), 0.3), 0.2))
    assert is_stuck(equal, Config(), 8, epochs=0)
    assert not is_stuck(0.9 * equal, Config(), 8, epochs=0)


@pytest.mark.parametrize(("images", "each"), [(100, 5), (1000, 5), (12, 2)])
def test_random_orders_are_at_chance_and_learned_ones_are_not(images: int, each: int) -> None:
    generator = np.random.default_rng(images)
    owners = np.repeat(np.arange(images), each)
    noise = generator.normal(size=(images, len(owners)))
    learned = noise + 3 * (np.arange(images)[:, None] == owners)
    random = retrieval_metrics(rank_blocks(lambda: [(0, noise)], owners))
    good = retrieval_metrics(rank_blocks(lambda: [(0, learned)], owners))
    assert at_chance(random, images, len(owners))
    assert not at_chance(good, images, len(owners))
