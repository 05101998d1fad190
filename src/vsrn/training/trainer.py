"""Training: batches in, a run folder out.

run/config.toml, vocabulary.json, model.safetensors   the best model so far (portable)
run/state/latest.safetensors                          where the run stands (resumable)
run/metrics.jsonl, events.*, run.json                 what happened; versions, command, time
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol

import msgspec
import torch

from vsrn.config import Config, config_to_toml
from vsrn.data.splits import Split
from vsrn.encoders.ranking import rank_encoded
from vsrn.encoders.scan_encoder import encoder_of
from vsrn.errors import ConfigError, TrainingError
from vsrn.files import write_atomically
from vsrn.metrics import RetrievalMetrics, retrieval_metrics
from vsrn.model.base import Batch
from vsrn.model.saved import CONFIG_FILE, write_weights
from vsrn.training import distributed
from vsrn.training.batches import PhotoBatches, ResidentRegions, TrainingBatches, has_room
from vsrn.training.checkpoint import Progress, RunLog, read_state, write_state
from vsrn.training.collapse import COLLAPSED, at_chance, is_stuck
from vsrn.training.loggers import MetricsLogger, open_loggers
from vsrn.training.optimizer import learning_rate_at, make_optimizer
from vsrn.training.passes import Passes
from vsrn.training.run import PreparedRun

LOG_EVERY = 10


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds the first SIGINT or SIGTERM from when it comes; a second one acts at once."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        before.close()

    with contextlib.ExitStack() as before:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before.callback(signal.signal, number, signal.signal(number, note))
        yield seen


class Reporter(Protocol):
    """Callbacks that show how a run goes; the command line draws a progress bar."""

    def stepped(self, progress: Progress, row: dict[str, Any] | None, /) -> None:
        """Called after each step; `row` is what was logged, every `LOG_EVERY` steps, else None."""

    def validated(self, progress: Progress, metrics: RetrievalMetrics) -> None:
        """Called after each validation, with the progress that includes it."""

    def noted(self, note: str, /) -> None:
        """Called with a sentence that a person should read, such as a warning; once for each."""


class Trainer:
    """One run on one device."""

    def __init__(self, prepared: PreparedRun, reporter: Reporter, loggers: Sequence[MetricsLogger] = ()) -> None:
        """Set up a run, with more loggers than its config's. Raises `ConfigError` where an epoch has no full step."""
        self.prepared, self.reporter, self.loggers = prepared, reporter, loggers
        self.config: Config = prepared.config
        self.device = distributed.training_device(self.config.train.device)
        self.model = prepared.model.to(self.device).train()
        distributed.synchronise_batch_norm(self.model)
        self.passes = Passes(self.model, prepared.loss.to(self.device).train(), self.config, self.device)
        self.step = self.passes.step
        train = self.config.train
        self.optimizer = make_optimizer(train, self.step.parameters())
        batches = TrainingBatches if isinstance(prepared.train, Split) else PhotoBatches
        self.batches = batches(
            prepared.train,
            prepared.vocabulary,
            train.batch_size,
            train.seed,
            dropped=train.drop_regions,
            rank=distributed.rank(),
            processes=distributed.world_size(),
        )
        if isinstance(prepared.train, Split) and has_room(prepared.train, self.device):
            self.batches.resident = ResidentRegions(prepared.train, self.device)
        self.steps_per_epoch = self.batches.steps_per_epoch // train.accumulate
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"train.accumulate {train.accumulate} is more than the {self.batches.steps_per_epoch} batches of an"
                " epoch; lower it or train.batch_size."
            )
        self.validate_every = train.validate_every or self.steps_per_epoch
        self.progress = Progress()
        # Of several processes the first writes the run folder.
        self.writes = distributed.rank() == 0
        self.log: RunLog | None = None
        # (3,) losses and gradient's norm of each step since the last logged row, on the device: no step waits for them.
        self.recent: list[torch.Tensor] = []
        # Matching losses of the rows that were logged since the last validation.
        self.since_validation: list[float] = []

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, unless it ends early."""
        train = self.config.train
        return min(self.steps_per_epoch * train.epochs, train.max_steps or sys.maxsize)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.progress.step >= self.total_steps or self.early

    @property
    def early(self) -> bool:
        """Whether `train.patience` is at its end."""
        return 0 < self.config.train.patience <= self.progress.stale

    def run(self, *, resume: bool) -> None:
        """Train to the end, or to the first Ctrl-C; either way everything is on disk afterwards, as `progress` says.

        Resumed, a run gives the weights of an unbroken one, bit for bit, on one kind of machine with as many threads.
        Raises `TrainingError` where a loss, a gradient or a weight is no longer a number, `DataError` where an image is
        the reason; the state that was saved before stays.
        """
        prepared, folder = self.prepared, self.prepared.folder
        with self.passes.stream():
            if resume:
                self.progress = read_state(folder, self.step, self.optimizer, distributed.rank(), prepared.origin)
                if prepared.changes and self.writes:
                    write_atomically(folder / CONFIG_FILE, config_to_toml(self.config).encode())
            else:
                self._save()
            if self.writes:
                self.log = self._open_log()
            try:
                with stop_signals() as signals:
                    stopped = False
                    while not self.finished and not stopped:
                        stopped = self._rest_of_epoch(signals)
            finally:
                if self.log is not None:
                    self.log.close(self.progress.step)

    def _open_log(self) -> RunLog:
        """The log, in which it is written what changed on resume."""
        folder, step = self.prepared.folder, self.progress.step
        loggers = [*open_loggers(self.config, folder, step), *self.loggers]
        log = RunLog(folder, step, loggers, device=str(self.device), processes=distributed.world_size())
        changes = self.prepared.changes.items()
        changed = [f"{name} was {then!r} and is {now!r} from step {step:,} on." for name, (then, now) in changes]
        for note in (*self.prepared.notes, *changed):
            log.note(step, note)
            self.reporter.noted(note)
        return log

    def _rest_of_epoch(self, signals: list[int]) -> bool:
        """Train to the end of the epoch or of the run, or until a stop is requested; returns whether one was."""
        epoch, accumulate = self.progress.epoch, self.config.train.accumulate
        changes = [part.begin_epoch(epoch) for part in self.model.encoders]
        if any(changes):
            self.passes.begin_anew()
        first = self.progress.step_in_epoch * accumulate
        batches = self.batches.epoch(epoch, first, pinned=self.device.type == "cuda")
        for _ in range(self.progress.step_in_epoch, self.steps_per_epoch):
            self._step(itertools.islice(batches, accumulate))
            row = self._log_row() if self.progress.step % LOG_EVERY == 0 else None
            self.reporter.stepped(self.progress, row)
            stopped = any(distributed.of_all(torch.tensor(len(signals))))
            if self.progress.step % self.validate_every == 0 or self.progress.step == self.total_steps:
                self._validate()
            elif stopped:
                self._save()
            if stopped or self.finished:
                return stopped
        return False

    def _step(self, batches: Iterable[Batch]) -> None:
        """One step of the optimiser on the mean gradient of as many batches as `train.accumulate` says."""
        train, step = self.config.train, self.progress.step
        rate = learning_rate_at(train, step, self.steps_per_epoch, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        # Where a step is recorded, gradients stay in their places and become 0.
        self.optimizer.zero_grad(set_to_none=self.passes.graphs is None)
        epochs = step / self.steps_per_epoch
        each = [self.passes(batch, epochs) for batch in batches]
        norm = torch.nn.utils.clip_grad_norm_(self.step.parameters(), train.gradient_clip or math.inf)
        self.optimizer.step()
        self.recent.append(torch.cat([torch.stack(each).mean(dim=0), norm[None]]))
        step += 1
        epoch, of_epoch = divmod(step, self.steps_per_epoch)
        self.progress = msgspec.structs.replace(self.progress, epoch=epoch, step_in_epoch=of_epoch, step=step)

    def _log_row(self) -> dict[str, Any]:
        """Log the mean losses since the last row. Raises as `run` does."""
        matching, generation, gradient_norm = self._mean_of_recent()
        self.recent = []
        self.since_validation.append(matching)
        row = {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "loss": matching + generation,
            "matching_loss": matching,
            "generation_loss": generation,
            "gradient_norm": gradient_norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        if self.log is not None:
            self.log.write(row)
        return row

    def _mean_of_recent(self) -> tuple[float, float, float]:
        """Mean matching and generation loss since the last row, and the last gradient's norm. Raises as `run` does."""
        each = torch.stack(self.recent)
        matching, generation, _ = torch.stack(distributed.of_all(each.mean(dim=0))).mean(dim=0).tolist()
        gradient_norm = float(each[-1, 2])
        if not math.isfinite(matching + generation + gradient_norm):
            raise self._no_number(each.tolist())
        return matching, generation, gradient_norm

    def _no_number(self, recent: list[list[float]]) -> TrainingError:
        """The error that names the first step whose loss or gradient is NaN or infinite, and what to do about it.

        recent  losses and gradient's norm of each of the last steps; `DataError` is raised where an image is the reason
        """
        what = f"a weight is no number after step {self.progress.step}"
        for step, (matching, generation, norm) in enumerate(recent, start=self.progress.step - len(recent) + 1):
            loss = matching + generation
            if not math.isfinite(loss):
                epoch, of_epoch = divmod(step - 1, self.steps_per_epoch)
                accumulate = self.config.train.accumulate
                for batch in range(accumulate):
                    self.batches.check_zeros(epoch, of_epoch * accumulate + batch)
                what = f"the loss is {loss} at step {step}, though every image and caption of that step is a number"
                break
            if not math.isfinite(norm):
                what = f"the gradient is {norm} at step {step}, though the loss there is {loss:.4g}"
                break
        bf16 = 'set train.precision to "fp32", or ' if self.config.train.precision == "bf16" else ""
        return TrainingError(
            f"{what}; {bf16}lower train.learning_rate. The state that was saved last is whole, but going on from it"
            " comes to the same; start another run with -o."
        )

    def _validate(self) -> None:
        """Recall@K on the validation images; the best model is written, then the checkpoint."""
        if self.recent:
            self._log_row()
        split, metrics = self.prepared.validation, None
        if self.writes:
            encoded = encoder_of(self.prepared.stored(), str(self.device)).encode_split(split)
            metrics = retrieval_metrics(rank_encoded([encoded], split.image_of_caption))
            self.model.train()
        rsum = float(distributed.of_all(torch.tensor(metrics.rsum if metrics else 0.0, dtype=torch.float64))[0])
        best = self.progress.best_rsum is None or rsum > self.progress.best_rsum
        step = self.progress.step
        found = {"best_rsum": rsum, "best_step": step, "stale": 0} if best else {"stale": self.progress.stale + 1}
        self.progress = msgspec.structs.replace(self.progress, **found)
        if best and self.writes:
            write_weights(self.prepared.folder, self.prepared.stored())
        if self.log is not None and metrics is not None:
            self.log.write({"step": step, "validation": metrics.to_json()})
        self._save()
        if self.log is not None and metrics is not None:
            self.reporter.validated(self.progress, metrics)
            note = COLLAPSED.format(limit=2 * self.batches.batch_size * self.config.loss.margin)
            if self._collapsed(metrics) and self.log.note(step, note):
                self.reporter.noted(note)
        self.since_validation = []

    def _collapsed(self, metrics: RetrievalMetrics) -> bool:
        """Whether the run, since its last validation, is stuck on the hardest negatives."""
        split, losses = self.prepared.validation, self.since_validation
        epochs = max(0, self.progress.step - self.validate_every) / self.steps_per_epoch
        return (
            bool(losses)
            and is_stuck(sum(losses) / len(losses), self.config, self.batches.batch_size, epochs)
            and (self.progress.stale > 0 or at_chance(metrics, split.num_images, len(split.captions)))
        )

    def _save(self) -> None:
        """Write where the run stands. Raises `TrainingError` where it holds a loss or a weight that is no number."""
        if self.recent:
            self._mean_of_recent()
        # A step's gradient may spoil the weights though its loss is a number; all processes have the same weights.
        weights = [tensor for tensor in self.step.state_dict().values() if tensor.is_floating_point()]
        if not bool(torch.stack([tensor.isfinite().all() for tensor in weights]).all()):
            raise self._no_number([])
        random_states = distributed.of_all(torch.get_rng_state())
        if self.writes:
            prepared = self.prepared
            write_state(prepared.folder, self.step, self.optimizer, self.progress, random_states, prepared.origin)
        if self.log is not None:
            self.log.record(self.progress.step)
