"""Everything a run needs to go on bit for bit: weights, optimiser, position and random state.

One safetensors file in the run's `state/` folder, replaced as a whole, so a killed run finds either the
last checkpoint or the one before it. No pickle.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from vsrn.errors import CheckpointError
from vsrn.model.matching import MatchingModel
from vsrn.model.weights import load_weights, read_tensors, write_tensors

STATE_FILE = Path("state") / "latest.safetensors"
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


def write_state(
    run: Path,
    model: MatchingModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    random_states: list[torch.Tensor],
) -> None:
    """Replace the run's checkpoint by the present state; `random_states` are those of each process."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = tensor
    for process, state in enumerate(random_states):
        tensors[f"random.cpu.{process}"] = state
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    path = run / STATE_FILE
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, tensors, {"progress": msgspec.json.encode(progress).decode()})


def read_state(run: Path, model: MatchingModel, optimizer: torch.optim.Optimizer, process: int = 0) -> Progress:
    """Put the run's checkpoint into a model and its optimiser, and say where the run stands.

    `process` is the one whose random state is restored; one that was not there before keeps its own.

    Raises `CheckpointError` where there is none, or it is broken or does not fit.
    """
    path = run / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{run} has no checkpoint to resume from ({STATE_FILE}); start it without --resume.")
    tensors, metadata = read_tensors(path)
    try:
        progress = msgspec.json.decode(metadata.get("progress", ""), type=Progress)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path} does not say where its run stands ({error}).") from error
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_weights(model, weights, path)
    for name, parameter in model.named_parameters():
        state = {key: tensors.get(f"optimizer.{key}.{name}") for key in ADAM_STATE}
        if progress.step and None in state.values():
            raise CheckpointError(f"{path} lacks the optimiser's state of {name}; this run cannot be resumed.")
        if progress.step:
            optimizer.state[parameter] = {
                key: tensor if key == "step" else tensor.to(parameter)
                for key, tensor in state.items()
                if tensor is not None
            }
    if f"random.cpu.{process}" in tensors:
        torch.set_rng_state(tensors[f"random.cpu.{process}"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return progress
