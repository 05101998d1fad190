"""`vsrn.train`: a run in one call, from Python."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vsrn.config import Config, check_config, config_from_table, read_config
from vsrn.configs import find_config
from vsrn.metrics import RetrievalMetrics
from vsrn.training import distributed
from vsrn.training.checkpoint import Progress, read_log
from vsrn.training.loggers import MetricsLogger
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Reporter, Trainer

_LOGGER = logging.getLogger("vsrn")


@dataclass(frozen=True)
class TrainedRun:
    """How a run ended.

    folder      of the run, for `vsrn.load` and `vsrn evaluate`
    finished    whether it came to its end; otherwise it was stopped, and `resume=True` goes on
    early       whether that end was `train.patience`
    step        steps taken
    best_step   step of the best validation, whose weights are kept
    best_rsum   the sum of its six recalls, 0 to 600; None before the first validation
    validation  all that it measured, as `vsrn evaluate --json` writes it: "image_to_text", "text_to_image", "rsum"
    """

    folder: Path
    finished: bool
    early: bool
    step: int
    best_step: int
    best_rsum: float | None
    validation: dict[str, Any]


class LoggingReporter:
    """Tells Python's logger "vsrn" about validations (level INFO) and what a person should read (WARNING)."""

    def stepped(self, _progress: Progress, _row: dict[str, Any] | None, /) -> None:
        """Say nothing."""

    def validated(self, progress: Progress, metrics: RetrievalMetrics) -> None:
        """One line."""
        _LOGGER.info("step %d: rsum %.1f, best %.1f", progress.step, metrics.rsum, progress.best_rsum)

    def noted(self, note: str, /) -> None:
        """The sentence."""
        _LOGGER.warning("%s", note)


def train(
    config: Config | Mapping[str, Any] | Path | str,
    *,
    output: Path | str,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    loggers: Sequence[MetricsLogger] = (),
) -> TrainedRun:
    """Train a model, as `vsrn train` does. Ctrl-C stops after the step, with everything saved.

    config    a config, its tables as a dict, a TOML file, a packaged config's name ("f30k"), or a run's folder
    output    folder of the run, which is new unless it is resumed
    resume    go on with the run in that folder, bit for bit where the config is unchanged
    settings  fields to change in the config, by their dotted names: {"train.epochs": 3}
    reporter  is called after each step and validation; without one, Python's logger "vsrn" is told
    loggers   take the metrics, beside those that `train.loggers` names

    Raises `ConfigError`, `DataError`, `CheckpointError` or `TrainingError`, as `vsrn train` does.
    """
    if isinstance(config, (str, Path)):
        config = read_config(find_config(config))
    elif not isinstance(config, Config):
        config = config_from_table(dict(config))
    config = changed(config, settings or {})
    folder = Path(output)
    with distributed.process_group(distributed.training_device(config.train.device)):
        prepared = prepare_run(config, folder, resume=resume, process=distributed.rank())
        trainer = Trainer(prepared, reporter or LoggingReporter(), loggers)
        trainer.run(resume=resume)
    progress = trainer.progress
    validations = {row["step"]: row["validation"] for row in read_log(folder) if "validation" in row}
    best = progress.best_step, progress.best_rsum, validations.get(progress.best_step, {})
    return TrainedRun(folder, trainer.finished, trainer.early, progress.step, *best)


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with other values of some fields, by their dotted names. Raises `ConfigError` as a TOML file would."""
    table = msgspec.to_builtins(config)
    for name, value in settings.items():
        inner, (*sections, last) = table, name.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    config = config_from_table(table, where="the settings")
    check_config(config, where="the settings")
    return config
