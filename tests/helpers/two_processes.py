"""Takes a few training steps in float64 and saves what came out; run by torchrun, or alone.

python two_processes.py CONFIG RUN OUT STEPS
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vsrn
from vsrn.config import LossConfig, read_config
from vsrn.model.base import Batch
from vsrn.model.losses import contrastive_loss
from vsrn.training import distributed
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer


class LearnedTemperature(nn.Module):
    def __init__(self, loss: LossConfig) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(loss.temperature))

    def forward(self, similarities: torch.Tensor, _epochs: float) -> torch.Tensor:
        return contrastive_loss(similarities, self.temperature)


vsrn.register_loss("learned-in-two-processes", LearnedTemperature)


class Silent:
    def stepped(self, *_: Any) -> None: ...

    def validated(self, *_: Any) -> None: ...

    def noted(self, _note: str) -> None: ...


class DoubleTrainer(Trainer):
    def _step(self, batches: Iterable[Batch]) -> None:
        super()._step(batch._replace(features=batch.features.double()) for batch in batches)


def main(config: str, run: str, out: str, steps: str) -> None:
    with distributed.process_group(torch.device("cpu")):
        prepared = prepare_run(read_config(config), Path(run), resume=False, process=distributed.rank())
        prepared.model.double()
        prepared.loss.double()
        trainer = DoubleTrainer(prepared, Silent())
        seen: list[dict[str, Any]] = []
        for batch, _ in zip(trainer.batches.epoch(0), range(int(steps)), strict=False):
            trainer._step([batch])
            losses = torch.stack(distributed.of_all(trainer.recent[-1][:2])).mean(dim=0)
            gradients = {name: p.grad.clone() for name, p in trainer.step.named_parameters() if p.grad is not None}
            seen.append({"losses": losses, "gradients": gradients})
        if distributed.rank() == 0:
            torch.save({"steps": seen, "weights": trainer.step.state_dict()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
