"""What a run writes down: the checkpoint from which it goes on bit for bit, its log, and the record of its starts.

A checkpoint is one safetensors file in the run's `state/` folder, replaced as a whole, with tensors `model.*`, `loss.*`
(where the loss has parameters), `optimizer.KEY.PARAMETER` and `random.*`. The log has one JSON object a line.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

import vsrn
from vsrn.errors import CheckpointError, DataError
from vsrn.files import write_atomically
from vsrn.tensors import load_weights, read_tensors, write_tensors
from vsrn.training.loggers import MetricsLogger

STATE_FILE = Path("state") / "latest.safetensors"
LOG_FILE = "metrics.jsonl"
RECORD_FILE = "run.json"
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


def write_state(
    run: Path,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    random_states: list[torch.Tensor],
    origin: dict[str, str],
) -> None:
    """Replace the run's checkpoint by the present state.

    learner        module of the parts `model` and `loss`
    random_states  those of each process
    origin         fingerprints by their keys in the metadata: EXTRACTOR_KEY, of the extractor that made the regions,
                   empty where nobody recorded it; DATA_KEY, of captions and images (`resume.data_fingerprint`)
    """
    tensors: dict[str, torch.Tensor] = dict(learner.state_dict())
    parameters = _parameters_of(learner)
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
    metadata = {"progress": msgspec.json.encode(progress).decode(), "untouched": " ".join(untouched), **origin}
    write_tensors(path, tensors, metadata)


def read_state(
    run: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, process: int, origin: dict[str, str]
) -> Progress:
    """Put the run's checkpoint into a model, its loss and their optimiser; returns where the run stands.

    process  whose random state is restored; one that was not there before keeps its own
    origin   as in `write_state`, of what is there now

    Raises `CheckpointError` where there is none, or it is broken or does not fit, and `DataError` where another
    extractor made the regions, or captions or images are others.
    """
    path = run / STATE_FILE
    tensors, metadata = read_tensors(path)
    try:
        progress = msgspec.json.decode(metadata.get("progress", ""), type=Progress)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path} does not say where its run stands ({error}).") from error
    began_with, extractor = metadata.get(EXTRACTOR_KEY, ""), origin[EXTRACTOR_KEY]
    if extractor and began_with not in ("", extractor):
        raise DataError(
            f"{run} began with regions of another extractor or other weights ({began_with[:12]}, now"
            f" {extractor[:12]}); put the regions it began with back into data.path, or start another run with -o."
        )
    if metadata.get(DATA_KEY, "") not in ("", origin[DATA_KEY]):
        raise DataError(
            f"{run} began with other captions or images than those it is given now; put them back, or start another run"
            f" with -o, which may take its weights: --train.init_from {run}."
        )
    load_weights(learner, {name: t for name, t in tensors.items() if name.startswith(("model.", "loss."))}, path)
    untouched = set(metadata.get("untouched", "").split())
    for name, parameter in _parameters_of(learner).items() if progress.step else ():
        if name in untouched:
            continue
        state = {key: f"optimizer.{key}.{name}" for key in ADAM_STATE}
        if not tensors.keys() >= set(state.values()):
            raise CheckpointError(f"{path} lacks the optimiser's state of {name}; this run cannot be resumed.")
        moments = {key: tensors[its].to(parameter) for key, its in state.items() if key != "step"}
        optimizer.state[parameter] = {"step": tensors[state["step"]].to(parameter.device), **moments}
    if f"random.cpu.{process}" in tensors:
        torch.set_rng_state(tensors[f"random.cpu.{process}"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return progress


def _parameters_of(learner: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `model` by its own names for them, and those of `loss` as `loss.NAME`."""
    return {name.removeprefix("model."): parameter for name, parameter in learner.named_parameters()}


class RunLog:
    """Writes down what happens: rows of metrics.jsonl, whose numbers loggers get too, and this start in run.json.

    A row is a dictionary with a "step". A validation's numbers nest under "validation"; a sentence is a "note".
    """

    def __init__(self, run: Path, step: int, loggers: Sequence[MetricsLogger] = (), **facts: Any) -> None:
        """Begin at a step; `facts` are what else run.json says of this start, such as the device."""
        self.run = run
        # A killed run may have logged steps beyond its checkpoint, which will be taken again.
        kept = [row for row in read_log(run) if row["step"] <= step]
        write_atomically(run / LOG_FILE, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))
        self._file = (run / LOG_FILE).open("ab")
        self._loggers = loggers
        self._noted = {row["note"] for row in kept if "note" in row}
        self._earlier, self._began, program = read_record(run), time.monotonic(), Path(sys.argv[0])
        self._start: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["vsrn" if program.parent.name == "vsrn" else program.name, *sys.argv[1:]]),
            "versions": {
                "vsrn": vsrn.__version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "commit": commit(),
            **facts,
            "from_step": step,
        }
        self.record(step)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()
        numbers = {name: value for name, value in flat(row, "/").items() if isinstance(value, (int, float))}
        values = {name: float(value) for name, value in numbers.items() if name != "step"}
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

    def record(self, step: int) -> None:
        """Bring run.json up to date: the steps taken, and the seconds on the wall since this start."""
        start = self._start | {"to_step": step, "seconds": round(time.monotonic() - self._began, 1)}
        page = msgspec.json.encode({"starts": [*self._earlier, start]})
        write_atomically(self.run / RECORD_FILE, msgspec.json.format(page, indent=1))

    def close(self, step: int) -> None:
        """Finish writing, after so many steps."""
        self._file.close()
        for logger in self._loggers:
            logger.finish()
        self.record(step)


def read_log(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = run / LOG_FILE
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            rows.append(msgspec.json.decode(line, type=dict[str, Any]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
    return rows


def read_record(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's run.json, one each time it was started; none where it is missing or damaged."""
    try:
        found = msgspec.json.decode((run / RECORD_FILE).read_bytes(), type=dict[str, list[dict[str, Any]]])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return found.get("starts", [])


def commit() -> str:
    """Git commit of the checkout that vsrn runs from, with "-dirty" where files differ; empty for an installed one."""
    checkout, git = Path(vsrn.__file__).parents[2], shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return ""
    arguments = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed
    except (OSError, subprocess.SubprocessError):
        return ""


def flat(table: dict[str, Any], between: str = ".") -> dict[str, Any]:
    """Nested tables as one, whose names are joined by a sign.

    >>> flat({"train": {"epochs": 3, "seed": 0}})
    {'train.epochs': 3, 'train.seed': 0}
    """
    fields: dict[str, Any] = {}
    for name, value in table.items():
        inner = flat(value, between) if isinstance(value, dict) else None
        fields |= {name: value} if inner is None else {f"{name}{between}{last}": inner[last] for last in inner}
    return fields
