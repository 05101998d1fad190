"""Weights that people have: a file of tensors, read without running anything, or what a hub gave before or gives now.

A hub is asked only where `ExtractorFiles.download` says that a person wants it; else its cache on this machine is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file
from torch import nn

from vsrn.errors import CheckpointError, ConfigError

NAMES_LISTED = 3
_Network = TypeVar("_Network")


def from_hub(name: str, load: Callable[[], _Network]) -> _Network:
    """What `load` downloads, or finds where it was downloaded before. Raises `ConfigError` where it cannot."""
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:
        # Hubs fail in as many ways as networks do.
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the weights of '{name}' cannot be had from the hub ({type(error).__name__}: {reason}); name a copy of"
            " them with --weights."
        ) from error


def not_here(name: str) -> ConfigError:
    """The error where an extractor's weights are not on this machine and may not be downloaded.

    name  as `vsrn extract --extractor` takes it; it may be a stranger's, so it is escaped
    """
    shown = repr(name[:200])[1:-1]
    return ConfigError(
        f"the weights of '{shown}' are not on this machine, and nothing is downloaded because a model or an index names"
        f" it; name a copy of them with --weights, or type `vsrn extract PHOTOS -o STORE --extractor {shown}` to"
        " download them."
    )


def downloaded_before(url: str) -> Path | None:
    """Where torch keeps what it downloaded from an address, or None where it never did; asks nobody."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    return path if path.is_file() else None


def load_tensors(network: nn.Module, path: Path, ignored: tuple[str, ...] = ()) -> None:
    """Put a file's tensors into a network.

    path     `.safetensors`, or what `torch.save` wrote, of which only tensors are unpickled
    ignored  what begins so is not needed

    Raises `CheckpointError` where the file is broken or does not fit, naming what is missing or left over.
    """
    tensors = {name: tensor for name, tensor in read_tensor_file(path).items() if not name.startswith(ignored)}
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(ignored)}
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    faults = [
        f"{said} {_listed(names)}"
        for said, names in (
            ("misses", sorted(needed - tensors.keys())),
            ("has left over", sorted(tensors.keys() - wanted.keys())),
            ("has in another shape", sorted(n for n in needed & tensors.keys() if not _alike(tensors[n], wanted[n]))),
            ("has with NaN or infinity", sorted(n for n in needed & tensors.keys() if not tensors[n].isfinite().all())),
        )
        if names
    ]
    if faults:
        raise CheckpointError(f"{path} does not fit the network: it {' and '.join(faults)}; name the weights of it.")
    network.load_state_dict(tensors, strict=False)


def read_tensor_file(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name. Raises `CheckpointError` where the file cannot be read or holds anything else."""
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A foreign or damaged file makes its parser stumble over anything.
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not a readable file of tensors ({reason}); check the path.") from error
    if not isinstance(content, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} does not hold names and tensors only; save the network's state dict alone.")
    return {str(name): tensor for name, tensor in content.items()}


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Weights may come in any precision, but not as the whole numbers of a quantised network.
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    # A stranger's names may hold anything; ours come out as they are.
    return ", ".join(repr(name[:100])[1:-1] for name in names[:NAMES_LISTED]) + more


def fingerprint_of(settings: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of a recipe and of weights by name, whatever file they came in.

    Tensors of whole numbers are left out: they count training steps or name places, and change nothing.
    """
    digest = hashlib.sha256(settings.encode())
    for name in sorted(tensors):
        if tensors[name].is_floating_point():
            digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
            digest.update(tensors[name].detach().cpu().float().contiguous().numpy().astype("<f4").data)
    return digest.hexdigest()
