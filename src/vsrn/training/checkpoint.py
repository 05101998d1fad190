"""What a run writes down: the checkpoint from which it goes on bit for bit, and its log.

A checkpoint holds weights, optimiser, position and random state. It is one safetensors file in the run's `state/`
folder, replaced as a whole, so a killed run finds either the last checkpoint or the one before it. Its tensors are
`model.*`, `loss.*` (where the loss has parameters), `optimizer.KEY.PARAMETER` and `random.*`.

The log is metrics.jsonl, one JSON object a line; loggers (loggers.py) get the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from vsrn.errors import CheckpointError, DataError
from vsrn.files import write_atomically
from vsrn.model.base import BaseModel
from vsrn.tensors import load_weights, read_tensors, write_tensors
from vsrn.training.loggers import MetricsLogger

STATE_FILE = Path("state") / "latest.safetensors"
LOG_FILE = "metrics.jsonl"
EXTRACTOR_KEY = "extractor_fingerprint"
DATA_KEY = "data_fingerprint"
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class Progress(msgspec.Struct, frozen=True):
    """Where a run stands.

    epoch           epochs finished
    step_in_epoch   steps finished of the next one
    step            steps finished in all
    best_rsum       of the best validation so far, or None before the first
    best_step       step of that validation
    stale           validations since then
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_rsum: float | None = None
    best_step: int = 0
    stale: int = 0


class Learner(NamedTuple):
    """What is trained: the model, its matching loss, and the optimiser of the parameters of both."""

    model: BaseModel
    loss: nn.Module
    optimizer: torch.optim.Optimizer

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by name; those of the loss are called `loss.NAME`."""
        ours = {f"loss.{name}": parameter for name, parameter in self.loss.named_parameters()}
        return dict(self.model.named_parameters()) | ours


def write_state(
    run: Path,
    learner: Learner,
    progress: Progress,
    random_states: list[torch.Tensor],
    fingerprint: str = "",
    data: str = "",
) -> None:
    """Replace the run's checkpoint by the present state.

    random_states  those of each process
    fingerprint    of the extractor that made the regions it is trained on; empty where nobody recorded it
    data           fingerprint of what it learns from and is validated on (`vsrn.training.resume.data_fingerprint`)
    """
    tensors = {f"model.{name}": tensor for name, tensor in learner.model.state_dict().items()}
    tensors |= {f"loss.{name}": tensor for name, tensor in learner.loss.state_dict().items()}
    optimizer, parameters = learner.optimizer, learner.parameters()
    for name, parameter in parameters.items():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = tensor
    for process, state in enumerate(random_states):
        tensors[f"random.cpu.{process}"] = state
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    # What was frozen so far, such as an image network before it is fine-tuned.
    untouched = [name for name, parameter in parameters.items() if parameter not in optimizer.state]
    path = run / STATE_FILE
    path.parent.mkdir(exist_ok=True)
    metadata = {
        "progress": msgspec.json.encode(progress).decode(),
        "untouched": " ".join(untouched),
        EXTRACTOR_KEY: fingerprint,
        DATA_KEY: data,
    }
    write_tensors(path, tensors, metadata)


def read_state(run: Path, learner: Learner, process: int = 0, fingerprint: str = "", data: str = "") -> Progress:
    """Put the run's checkpoint into a model, its loss and their optimiser; returns where the run stands.

    process      whose random state is restored; one that was not there before keeps its own
    fingerprint  as in `write_state`, of the regions that are there now
    data         as in `write_state`, of the data that is there now

    Raises `CheckpointError` where there is none, or it is broken or does not fit, and `DataError` where another
    extractor made the regions, or captions or images are others.
    """
    path = run / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{run} has no checkpoint to resume from ({STATE_FILE}); start it without --resume.")
    tensors, metadata = read_tensors(path)
    try:
        progress = msgspec.json.decode(metadata.get("progress", ""), type=Progress)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path} does not say where its run stands ({error}).") from error
    began_with = metadata.get(EXTRACTOR_KEY, "")
    if fingerprint and began_with and fingerprint != began_with:
        raise DataError(
            f"{run} began with regions of another extractor or other weights ({began_with[:12]}, now"
            f" {fingerprint[:12]}); put the regions it began with back into data.path, or start another run with -o."
        )
    if data and metadata.get(DATA_KEY, data) not in ("", data):
        raise DataError(
            f"{run} began with other captions or images than those it is given now; put them back, or start another run"
            f" with -o, which may take its weights: --train.init_from {run}."
        )
    for prefix, module in (("model.", learner.model), ("loss.", learner.loss)):
        weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        load_weights(module, weights, path)
    untouched = set(metadata.get("untouched", "").split())
    for name, parameter in learner.parameters().items() if progress.step else ():
        if name in untouched:
            continue
        state = {key: f"optimizer.{key}.{name}" for key in ADAM_STATE}
        if not tensors.keys() >= set(state.values()):
            raise CheckpointError(f"{path} lacks the optimiser's state of {name}; this run cannot be resumed.")
        moments = {key: tensors[its].to(parameter) for key, its in state.items() if key != "step"}
        learner.optimizer.state[parameter] = {"step": tensors[state["step"]].to(parameter.device), **moments}
    if f"random.cpu.{process}" in tensors:
        torch.set_rng_state(tensors[f"random.cpu.{process}"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return progress


class RunLog:
    """Appends to a run's log. Rows are dictionaries with a "step"; validations nest under "validation".

    What is said once, such as a warning, is a row with a "note". The numbers of a row go to the loggers too.
    """

    def __init__(self, run: Path, from_step: int, loggers: Sequence[MetricsLogger] = ()) -> None:
        self.path = run / LOG_FILE
        # A killed run may have logged steps beyond its checkpoint, which will be taken again.
        kept = [row for row in read_log(run) if row["step"] <= from_step]
        write_atomically(self.path, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))
        self._file = self.path.open("ab")
        self._loggers = loggers
        self._noted = {row["note"] for row in kept if "note" in row}

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()
        values = _flat(row)
        if values:
            for logger in self._loggers:
                logger.log_metrics(row["step"], values)

    def note(self, step: int, note: str) -> bool:
        """Write a sentence down, unless the run has it already; returns whether it was new."""
        new = note not in self._noted
        if new:
            self._noted.add(note)
            self.write({"step": step, "note": note})
        return new

    def close(self) -> None:
        """Finish writing."""
        self._file.close()
        for logger in self._loggers:
            logger.finish()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = run / LOG_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(msgspec.json.decode(line, type=dict[str, Any]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
    return rows


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    scalars: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            scalars |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            scalars[prefix + name] = float(value)
    return scalars
