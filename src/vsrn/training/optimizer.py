"""The optimiser of a run and its learning rate, which depends on the step alone, so that a resumed run finds it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vsrn.config import TrainConfig


def make_optimizer(train: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that the config names, of these parameters.

    Those with an attribute `pretrained` are a group of their own, the second. Each group's `factor` is its share of the
    learning rate.
    """
    ours: list[nn.Parameter] = []
    pretrained: list[nn.Parameter] = []
    for parameter in parameters:
        (pretrained if getattr(parameter, "pretrained", False) else ours).append(parameter)
    groups: list[dict[str, Any]] = [{"params": ours, "factor": 1.0}]
    if pretrained:
        groups.append({"params": pretrained, "factor": train.text_learning_rate_factor})
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, train.learning_rate, weight_decay=train.weight_decay, fused=True)


def learning_rate_at(train: TrainConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Learning rate of a step (from 0) of a run of so many steps.

    It rises evenly over `warm_up_steps`; with the schedule "step" it is divided by 10 after each epoch of
    `learning_rate_drop`, and with "cosine" it falls along half a cosine from the end of the warm-up to the last step.

    >>> cosine = TrainConfig(learning_rate=1.0, schedule="cosine", warm_up_steps=2)
    >>> [round(learning_rate_at(cosine, step, 5, 6), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    warm_up = min(1.0, (step + 1) / train.warm_up_steps) if train.warm_up_steps else 1.0
    if train.schedule == "cosine":
        share = max(0, step - train.warm_up_steps) / max(1, total_steps - train.warm_up_steps)
        return train.learning_rate * warm_up * (1 + math.cos(math.pi * share)) / 2
    drops = sum(step // steps_per_epoch >= drop for drop in train.learning_rate_drop)
    return train.learning_rate * 0.1**drops * warm_up
