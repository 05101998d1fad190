"""Everything a run needs to go on bit for bit: weights, optimiser, position and random state.

One safetensors file in the run's `state/` folder, replaced as a whole, so a killed run finds either the last checkpoint
or the one before it. Its tensors are `model.*`, `loss.*` (where the loss has parameters), `optimizer.KEY.PARAMETER` and
`random.*`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import nn

from vsrn.errors import CheckpointError, DataError
from vsrn.model.base import BaseModel
from vsrn.tensors import load_weights, read_tensors, write_tensors

STATE_FILE = Path("state") / "latest.safetensors"
EXTRACTOR_KEY = "extractor_fingerprint"
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class Progress(msgspec.Struct, frozen=True):
    """Where a run stands.

    epoch           epochs finished
    step_in_epoch   steps finished of the next one
    step            steps finished in all
    best_rsum       of the best validation so far, or None before the first
    best_step       step of that validation
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_rsum: float | None = None
    best_step: int = 0


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
    run: Path, learner: Learner, progress: Progress, random_states: list[torch.Tensor], fingerprint: str = ""
) -> None:
    """Replace the run's checkpoint by the present state.

    random_states  those of each process
    fingerprint    of the extractor that made the regions it is trained on; empty where nobody recorded it
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
    }
    write_tensors(path, tensors, metadata)


def read_state(run: Path, learner: Learner, process: int = 0, fingerprint: str = "") -> Progress:
    """Put the run's checkpoint into a model, its loss and their optimiser; returns where the run stands.

    process      whose random state is restored; one that was not there before keeps its own
    fingerprint  as in `write_state`, of the regions that are there now

    Raises `CheckpointError` where there is none, or it is broken or does not fit, and `DataError` where another
    extractor made the regions.
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
    for prefix, module in (("model.", learner.model), ("loss.", learner.loss)):
        weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        load_weights(module, weights, path)
    untouched = set(metadata.get("untouched", "").split())
    for name, parameter in learner.parameters().items():
        state = {key: tensors.get(f"optimizer.{key}.{name}") for key in ADAM_STATE}
        stepped = progress.step and name not in untouched
        if stepped and None in state.values():
            raise CheckpointError(f"{path} lacks the optimiser's state of {name}; this run cannot be resumed.")
        if stepped:
            learner.optimizer.state[parameter] = {
                key: tensor if key == "step" else tensor.to(parameter)
                for key, tensor in state.items()
                if tensor is not None
            }
    if f"random.cpu.{process}" in tensors:
        torch.set_rng_state(tensors[f"random.cpu.{process}"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return progress
