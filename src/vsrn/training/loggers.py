"""Where a run's metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, or a logger of the user's own."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vsrn.config import Config
from vsrn.errors import ConfigError
from vsrn.model.registry import Registry

WANDB_ID = Path("state") / "wandb-id.txt"


class MetricsLogger(Protocol):
    """What takes a run's metrics. Of several processes the first alone has loggers."""

    def log_metrics(self, step: int, values: dict[str, float], /) -> None:
        """Take numbers by name, such as "matching_loss" or "validation/rsum", after so many steps."""

    def finish(self) -> None:
        """The run has ended or was stopped; called once."""


class TensorBoardLogger:
    """Events for TensorBoard in the run's folder."""

    def __init__(self, run: Path, _config: Config, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional extra

        # Steps beyond the checkpoint of a killed run will be taken again.
        self._events = SummaryWriter(str(run), purge_step=from_step + 1)

    def log_metrics(self, step: int, values: dict[str, float], /) -> None:
        """Write one event a number."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def finish(self) -> None:
        """Close the file."""
        self._events.close()


class WandbLogger:
    """Weights & Biases, under the run's folder; WANDB_PROJECT and WANDB_MODE count as in any program."""

    def __init__(self, run: Path, config: Config, _from_step: int) -> None:
        import wandb  # noqa: PLC0415 - an optional extra

        known = run / WANDB_ID
        # A resumed run goes on with its own curves.
        name = known.read_text(encoding="utf-8").strip() if known.is_file() else os.urandom(4).hex()
        known.parent.mkdir(exist_ok=True)
        known.write_text(name, encoding="utf-8")
        project, fields = os.environ.get("WANDB_PROJECT", "vsrn"), dataclasses.asdict(config)
        self._run = wandb.init(project=project, id=name, name=run.name, resume="allow", dir=str(run), config=fields)

    def log_metrics(self, step: int, values: dict[str, float], /) -> None:
        """Send one row."""
        self._run.log(values, step=step)

    def finish(self) -> None:
        """Send what is left."""
        self._run.finish()


LOGGERS = Registry(
    "train.loggers",
    {"tensorboard": "vsrn.training.loggers:TensorBoardLogger", "wandb": "vsrn.training.loggers:WandbLogger"},
)


def register_logger(name: str, factory: Callable[[Path, Config, int], MetricsLogger]) -> None:
    """Add a logger of metrics, for `train.loggers`. Raises `ConfigError` where the name is taken.

    factory  folder of the run, its config, the steps that it has taken (above 0 where it is resumed) -> an object with
             `log_metrics(step, values)` and `finish()`
    """
    LOGGERS.register(name, factory)


def check_loggers(config: Config) -> None:
    """Raise `ConfigError` where `train.loggers` names what nobody registered, or what is not installed."""
    for name in config.train.loggers:
        LOGGERS.check(name)
    if "wandb" in config.train.loggers and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "train.loggers 'wandb' needs the package wandb; run `pip install '.[wandb]'` in the checkout."
        )


def open_loggers(config: Config, run: Path, from_step: int) -> list[MetricsLogger]:
    """The loggers of a config, for a run with so many steps taken; without TensorBoard where it is not installed."""
    without = [] if importlib.util.find_spec("tensorboard") else ["tensorboard"]
    names = [name for name in dict.fromkeys(config.train.loggers) if name not in without]
    return [LOGGERS.make(name, run, config, from_step) for name in names]
