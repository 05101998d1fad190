"""Training: batches in, a run folder out.

    run/config.toml, vocabulary.json, model.safetensors   the best model so far (portable)
    run/state/latest.safetensors                          where the run stands (resumable)
    run/metrics.jsonl, events.*                           what happened

A run depends on its config and its data alone: stopped and resumed, it gives the same weights, bit for
bit, as one that was never stopped on the same kind of machine with as many threads.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple, Protocol

import msgspec
import torch
from torch import nn

from vsrn.config import Config
from vsrn.encoders.torch_backend import Precision, encoder_of
from vsrn.errors import TrainingError
from vsrn.metrics import RetrievalMetrics, rank_blocks, retrieval_metrics, similarity_blocks
from vsrn.model.base import BaseModel, Batch, Losses
from vsrn.model.saved import write_weights
from vsrn.training import distributed
from vsrn.training.batches import batches_for, send
from vsrn.training.checkpoint import Learner, Progress, RunLog, read_state, write_state
from vsrn.training.run import PreparedRun

LOG_EVERY = 10


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds the first SIGINT or SIGTERM from when it comes; a second one acts at once."""
    seen: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        restore()

    # Python allows handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield seen
    finally:
        restore()


class Reporter(Protocol):
    """Callbacks that show how a run goes; the command line draws a progress bar."""

    def stepped(self, progress: Progress, row: dict[str, Any] | None, /) -> None:
        """Called after each step; `row` is what was logged, every `LOG_EVERY` steps, else None."""

    def validated(self, progress: Progress, metrics: RetrievalMetrics) -> None:
        """Called after each validation, with the progress that includes it."""


class TrainingResult(NamedTuple):
    """How a run ended: finished, or stopped by request and resumable."""

    progress: Progress
    finished: bool


class _Step(nn.Module):
    """Model and loss as one module, so that several processes average the gradients of both."""

    def __init__(self, model: BaseModel, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch, epochs: float) -> Losses:
        """The losses of a batch, after so many epochs."""
        losses: Losses = self.model(batch, self.loss, distributed.gather_batch, epochs)
        return losses


class Trainer:
    """One run on one device."""

    def __init__(self, prepared: PreparedRun, reporter: Reporter) -> None:
        self.config: Config = prepared.config
        self.prepared, self.reporter = prepared, reporter
        self.device = distributed.training_device(self.config.train.device)
        self.model = prepared.model.to(self.device).train()
        distributed.synchronise_batch_norm(self.model)
        self.step = _Step(self.model, prepared.loss.to(self.device).train())
        self.parallel = distributed.shared(self.step)
        train = self.config.train
        self.optimizer = torch.optim.Adam(self.step.parameters(), lr=train.learning_rate, fused=True)
        self.learner = Learner(self.model, self.step.loss, self.optimizer)
        self.batches = batches_for(prepared.train)(
            prepared.train,
            prepared.vocabulary,
            train.batch_size,
            train.seed,
            dropped=train.drop_regions,
            rank=distributed.rank(),
            processes=distributed.world_size(),
        )
        self.validate_every = train.validate_every or self.batches.steps_per_epoch
        self.progress = Progress()
        # Of several processes the first writes the run folder.
        self.writes = distributed.rank() == 0
        # (3,) matching and generation loss and gradient's norm of each step since the last logged row, kept on the
        # device so that no step waits for them.
        self.recent: list[torch.Tensor] = []

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.batches.steps_per_epoch * self.config.train.epochs

    def run(self, *, resume: bool) -> TrainingResult:
        """Train to the end, or to the first Ctrl-C; either way everything is on disk afterwards.

        Raises `TrainingError` where a loss, a gradient or a weight is no longer a number, and `DataError` where an
        image is the reason; what is on disk is then the state that was saved before.
        """
        if resume:
            fingerprint = self.prepared.regions.fingerprint
            self.progress = read_state(self.prepared.folder, self.learner, distributed.rank(), fingerprint)
        else:
            self._save()
        log = RunLog(self.prepared.folder, self.progress.step) if self.writes else None
        try:
            with stop_signals() as signals:
                stopped = False
                while self.progress.step < self.total_steps and not stopped:
                    stopped = self._rest_of_epoch(log, signals)
        finally:
            if log is not None:
                log.close()
        return TrainingResult(self.progress, finished=self.progress.step >= self.total_steps)

    def _rest_of_epoch(self, log: RunLog | None, signals: list[int]) -> bool:
        """Train to the end of the epoch or until a stop is requested; returns whether one was."""
        epoch = self.progress.epoch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.config, epoch)
        changes = [part.begin_epoch(epoch) for part in self.model.image_encoders]
        if any(changes):
            self.parallel = distributed.shared(self.step)
        for batch in self.batches.epoch(epoch, self.progress.step_in_epoch):
            self._step(batch)
            row = self._log_row(log) if self.progress.step % LOG_EVERY == 0 else None
            self.reporter.stepped(self.progress, row)
            stopped = any(distributed.of_all(torch.tensor(len(signals))))
            if self.progress.step % self.validate_every == 0 or self.progress.step == self.total_steps:
                self._validate(log)
            elif stopped:
                self._save()
            if stopped:
                return True
        return False

    def _step(self, batch: Batch) -> None:
        batch = send(batch, self.device)
        with autocast(self.device, self.config.train.precision):
            losses: Losses = self.parallel(batch, self.progress.step / self.batches.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        losses.joint.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.step.parameters(), self.config.train.gradient_clip or math.inf)
        self.optimizer.step()
        self.recent.append(torch.stack([losses.matching.detach(), losses.generation.detach(), norm]))
        step = self.progress.step + 1
        epoch, of_epoch = divmod(step, self.batches.steps_per_epoch)
        self.progress = msgspec.structs.replace(self.progress, epoch=epoch, step_in_epoch=of_epoch, step=step)

    def _log_row(self, log: RunLog | None) -> dict[str, Any]:
        """Log the mean losses since the last row. Raises what `_mean_of_recent` raises."""
        matching, generation, gradient_norm = self._mean_of_recent()
        self.recent = []
        row = {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "loss": matching + generation,
            "matching_loss": matching,
            "generation_loss": generation,
            "gradient_norm": gradient_norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        if log is not None:
            log.write(row)
        return row

    def _mean_of_recent(self) -> tuple[float, float, float]:
        """Mean matching and generation loss since the last row, and the last gradient's norm.

        Raises `TrainingError` where one is not a number, and `DataError` where an image is the reason.
        """
        each = torch.stack(self.recent)
        matching, generation, _ = torch.stack(distributed.of_all(each.mean(dim=0))).mean(dim=0).tolist()
        gradient_norm = float(each[-1, 2])
        if not math.isfinite(matching + generation + gradient_norm):
            raise self._no_number(each.tolist())
        return matching, generation, gradient_norm

    def _no_number(self, recent: list[list[float]]) -> TrainingError:
        """The error that names the first step whose loss or gradient is NaN or infinite, and what to do about it.

        recent  losses and gradient's norm of each of the last steps

        Raises `DataError` instead where an image is the reason.
        """
        what = f"a weight is no number after step {self.progress.step}"
        for step, (matching, generation, norm) in enumerate(recent, start=self.progress.step - len(recent) + 1):
            loss = matching + generation
            if not math.isfinite(loss):
                self.batches.check_zeros(step)
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

    def _validate(self, log: RunLog | None) -> None:
        """Recall@K on the validation images; the best model is written, then the checkpoint."""
        if self.recent:
            self._log_row(log)
        metrics = self._validation_metrics() if self.writes else None
        rsum = float(distributed.of_all(torch.tensor(metrics.rsum if metrics else 0.0, dtype=torch.float64))[0])
        best = self.progress.best_rsum is None or rsum > self.progress.best_rsum
        if best:
            self.progress = msgspec.structs.replace(self.progress, best_rsum=rsum, best_step=self.progress.step)
        if best and self.writes:
            write_weights(self.prepared.folder, self.prepared.stored())
        if log is not None and metrics is not None:
            log.write({"step": self.progress.step, "validation": metrics.to_json()})
        self._save()
        if metrics is not None:
            self.reporter.validated(self.progress, metrics)

    def _validation_metrics(self) -> RetrievalMetrics:
        split = self.prepared.validation
        encoded = encoder_of(self.prepared.stored(), str(self.device)).encode_split(split)
        ranks = rank_blocks(similarity_blocks([encoded]), split.image_of_caption)
        self.model.train()
        return retrieval_metrics(ranks)

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
            fingerprint = self.prepared.regions.fingerprint
            write_state(self.prepared.folder, self.learner, self.progress, random_states, fingerprint)


def learning_rate_at(config: Config, epoch: int) -> float:
    """Learning rate of an epoch (from 0): divided by 10 after each epoch that the config names."""
    drops = sum(epoch >= drop for drop in config.train.learning_rate_drop)
    return config.train.learning_rate * 0.1**drops


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which matrix products have this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
