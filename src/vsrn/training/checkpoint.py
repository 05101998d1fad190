"""Everything a run needs to go on bit for bit: weights, optimiser, position and random state.

One safetensors file in the run's `state/` folder, replaced as a whole, so a killed run finds either the
last checkpoint or the one before it. No pickle.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from vsrn.errors import CheckpointError, DataError
from vsrn.model.base import MatchingModel
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


def write_state(
    run: Path,
    model: MatchingModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    random_states: list[torch.Tensor],
    fingerprint: str = "",
) -> None:
    """Replace the run's checkpoint by the present state.

    random_states  those of each process
    fingerprint    of the extractor that made the regions it learns from; empty where nobody recorded it
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = tensor
    for process, state in enumerate(random_states):
        tensors[f"random.cpu.{process}"] = state
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    # What has stood still so far, such as a network before it is fine-tuned.
    untouched = [name for name, parameter in model.named_parameters() if parameter not in optimizer.state]
    path = run / STATE_FILE
    path.parent.mkdir(exist_ok=True)
    metadata = {
        "progress": msgspec.json.encode(progress).decode(),
        "untouched": " ".join(untouched),
        EXTRACTOR_KEY: fingerprint,
    }
    write_tensors(path, tensors, metadata)


def read_state(
    run: Path, model: MatchingModel, optimizer: torch.optim.Optimizer, process: int = 0, fingerprint: str = ""
) -> Progress:
    """Put the run's checkpoint into a model and its optimiser, and say where the run stands.

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
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_weights(model, weights, path)
    untouched = set(metadata.get("untouched", "").split())
    for name, parameter in model.named_parameters():
        state = {key: tensors.get(f"optimizer.{key}.{name}") for key in ADAM_STATE}
        stepped = progress.step and name not in untouched
        if stepped and None in state.values():
            raise CheckpointError(f"{path} lacks the optimiser's state of {name}; this run cannot be resumed.")
        if stepped:
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
