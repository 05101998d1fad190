"""`vsrn train`: a config -> a trained run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import tyro

from vsrn.cli.options import Json, print_json, say_unknown_share
from vsrn.cli.progress import ProgressBar, mute, say
from vsrn.config import Config, config_fields, read_config
from vsrn.configs import find_config
from vsrn.errors import ConfigError
from vsrn.other_names import nearest_field

if TYPE_CHECKING:
    from vsrn.metrics import RetrievalMetrics
    from vsrn.training.checkpoint import Progress


def as_typed(arguments: Sequence[str]) -> list[str]:
    """The arguments in the forms that the parser takes: `true` as True, `[10, 20]` as 10 20, and `[]` as nothing.

    Raises `ConfigError` for an option that is not there where one can be told that is meant, such as
    --train.learning_rate for --lr.
    """
    fields = config_fields()
    options = {*fields, *inspect.signature(main_for(())).parameters, "plugin", "help"}
    typed: list[str] = []
    kind: Any = None
    for argument in arguments:
        value: str | None = argument
        if argument.startswith("--"):
            option, equals, after = argument.partition("=")
            name = option[2:].replace("-", "_")
            section, _, last = name.rpartition(".")
            meant = None if name in options else nearest_field(last, f"{section}." if section else "", config_fields())
            if meant is not None:
                raise ConfigError(f"there is no option {option}. Did you mean --{meant}?")
            kind, value = fields.get(name), after if equals else None
            typed.append(option)
        if value is not None and get_origin(kind) is list:
            typed += value.strip("[] ").replace(",", " ").split()
        elif value is not None:
            typed.append(_BOOLEANS.get(value.lower(), value) if kind is bool else value)
    return typed


_BOOLEANS = {"true": "True", "yes": "True", "on": "True", "false": "False", "no": "False", "off": "False"}


def main_for(arguments: Sequence[str]) -> Callable[..., int]:
    """The command as a function, whose defaults are those of the config that the arguments name first."""
    named = next((word for word in arguments[:1] if not word.startswith("-")), None)
    defaults = read_config(find_config(named)) if named else Config()

    def main(
        config: tyro.conf.Positional[Path],
        settings: Annotated[tyro.conf.FlagConversionOff[Config], tyro.conf.arg(name="")] = defaults,
        *,
        output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="RUN")] = None,
        resume: bool = False,
        json: Json = False,
    ) -> int:
        """Train a model as a config says; any of its fields can be given here instead.

        $ vsrn train flickr8k --train.epochs 4 --model.joint_dim 512

        Ctrl-C saves and stops; the same command with --resume goes on bit for bit.
        Several GPUs or machines: torchrun --nproc-per-node 4 -m vsrn train CONFIG [OPTIONS]; the batch is shared.

        Args:
            config: TOML file, a packaged config's name (`vsrn configs` lists them), or a run's folder.
            settings: Fields of the config, as --section.field value.
            output: Folder of the run [default: runs/NAME for a config NAME; a run's own folder].
            resume: Go on with the run that is in the folder.
        """
        if named is None or Path(named) != config:
            # The config gives the defaults, so it has to be known before the options are.
            raise ConfigError(f"name the config first: vsrn train {config} [OPTIONS].")
        from vsrn.model.registry import check_parts

        check_parts(settings, where=str(config))
        folder = output or (config if config.is_dir() else Path("runs") / config.stem)
        return train(settings, folder, resume=resume, json=json)

    return main


def train(config: Config, folder: Path, *, resume: bool, json: bool) -> int:
    """Train, alone or as one of the processes that `torchrun` started, and say where the result is."""
    say(f"Preparing {folder}...")
    from vsrn.training import distributed
    from vsrn.training.run import prepare_run
    from vsrn.training.trainer import Trainer

    with distributed.process_group(distributed.training_device(config.train.device)):
        if distributed.rank() > 0:
            mute()
        prepared = prepare_run(config, folder, resume=resume, process=distributed.rank())
        data = prepared.config.data
        say(
            f"{data.path or data.annotations}: learning from {prepared.train.num_images:,} images,"
            f" {len(prepared.train.captions):,} captions and {len(prepared.vocabulary):,} words;"
            f" {prepared.validation.num_images:,} images choose the best model."
        )
        reporter = TrainingReporter()
        trainer = Trainer(prepared, reporter)
        say_unknown_share(trainer.batches.unknown_share, "the vocabulary")
        with ProgressBar("training", "steps", trainer.total_steps) as reporter.bar:
            trainer.run(resume=resume)
        progress = trainer.progress
        if json and distributed.rank() == 0:
            best = {"best_rsum": progress.best_rsum, "best_step": progress.best_step}
            print_json({"run": str(folder), "finished": trainer.finished, "step": progress.step, **best})
    if not trainer.finished:
        say(f"Stopped at step {progress.step:,}; everything is saved. To go on, add --resume to the command.")
        return 130
    if trainer.early:
        say(f"Ended early at step {progress.step:,}: {progress.stale} validations without a better rsum.")
    say(f"Best rsum {progress.best_rsum:.1f} at step {progress.best_step:,}, kept in {folder}.")
    say(f"Next: vsrn evaluate {folder} --split {data.validation}")
    return 0


class TrainingReporter:
    """Draws a run's progress on standard error: loss, rate, time left, and a line per validation."""

    bar: ProgressBar
    loss = ""

    def stepped(self, progress: Progress, row: dict[str, Any] | None) -> None:
        """Move the bar; new losses appear when they are logged."""
        if row is not None:
            self.loss = f"epoch {progress.epoch + 1}, loss {row['loss']:.1f}"
        self.bar.at(progress.step, words=self.loss)

    def noted(self, note: str) -> None:
        """The sentence."""
        say(f"note: {note}")

    def validated(self, progress: Progress, metrics: RetrievalMetrics) -> None:
        """One line: recalls and whether this is the best model so far."""
        to_text, to_image = metrics.image_to_text.recalls, metrics.text_to_image.recalls
        best = " (best so far, kept)" if progress.best_step == progress.step else ""
        say(
            f"step {progress.step:,}: R@1/5/10 image-to-text {' '.join(f'{r:.1f}' for r in to_text)},"
            f" text-to-image {' '.join(f'{r:.1f}' for r in to_image)}, rsum {metrics.rsum:.1f}{best}"
        )
