"""Runs for tests: trained, stopped where asked, and compared file by file."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vsrn.config import Config
from vsrn.metrics import RetrievalMetrics
from vsrn.training.checkpoint import STATE_FILE, Progress, read_log
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer


class Silent:
    """Nobody watches; a stop may be asked for after a given step, the way Ctrl-C asks for it."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after

    def stepped(self, progress: Progress, _row: dict[str, Any] | None) -> None:
        if progress.step == self.stop_after:
            signal.raise_signal(signal.SIGINT)

    def validated(self, progress: Progress, metrics: RetrievalMetrics) -> None:
        pass

    def noted(self, note: str) -> None:
        pass


def train(config: Config, run: Path, *, resume: bool = False, stop_after: int | None = None) -> Trainer:
    trainer = Trainer(prepare_run(config, run, resume=resume), Silent(stop_after))
    trainer.run(resume=resume)
    return trainer


def assert_same_run(one: Path, other: Path) -> None:
    for name in (STATE_FILE, Path("model.safetensors")):
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), f"{name}: {key}"
    assert [row["step"] for row in read_log(one)] == [row["step"] for row in read_log(other)]
    assert [row.get("validation") for row in read_log(one)] == [row.get("validation") for row in read_log(other)]
