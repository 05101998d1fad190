"""Files of tensors: read without running anything, checked against a network, written whole; and their fingerprint.

Every file of weights is read here, but for 2019 checkpoints (`vsrn.convert`), and every network is filled here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vsrn.errors import CheckpointError, ConfigError, one_line
from vsrn.files import replacing
from vsrn.onnx_files import read_content

NAMES_LISTED = 3
# What a training checkpoint calls the part that holds the weights.
_WRAPPERS = ("model", "state_dict")
# Before each name, where `nn.DataParallel` wrapped the network.
_PARALLEL = "module."
_Network = TypeVar("_Network")


class Inert(dict[Any, Any]):
    """Takes the place of a value that is not used; does nothing."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None: ...


class _NumberType:
    """Takes the place of a type of numpy's, of which only its letter, its size and its byte order are kept."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


def _number(kind: object = None, content: object = b"", *_: object) -> Any:
    """A number or a text that numpy pickled as its own -> Python's; `Inert` where it is anything else.

    Python 2's bytes come as text, each a letter of Latin-1.
    """
    if not isinstance(kind, _NumberType) or not _NUMBER_TYPE.fullmatch(kind.code):
        return Inert()
    try:
        held = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(cast("bytes", held), np.dtype(kind.order + kind.code), count=1)[0].item()
    except (TypeError, ValueError):
        return Inert()


# A truth value, a number of 1 to 8 bytes, or a text.
_NUMBER_TYPE = re.compile(r"b1|[iuf][1248]|[SU][1-9][0-9]{0,3}")
# What a number of numpy asks for when it is unpickled, before and after numpy 2; nothing of numpy's unpickling runs.
NUMPY_NUMBERS: list[Any] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_tensor_file(path: Path) -> dict[str, torch.Tensor]:
    """Read anybody's file of weights onto the CPU: tensors by name.

    path  `.safetensors`, `.onnx` with its floats, or what `torch.save` wrote in either format, of which only tensors
          and plain values are unpickled: names, or names under `model` or `state_dict`, without their `module.`

    Raises `CheckpointError` where the file cannot be read or its weights are anything but names and tensors.
    """
    if path.suffix == ".onnx":
        # The bytes of a file cannot be written to, as tensors can.
        return {name: torch.from_numpy(array.copy()) for name, array in read_content(path)[1].items()}
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
                # torch warns of what it goes on to refuse.
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except Exception as error:
        # A foreign or damaged file makes its parser raise anything.
        raise CheckpointError(
            f"{path} is not a readable file of tensors ({one_line(error)}); nothing else is unpickled, so save the"
            " network's state dict alone."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} does not hold names and tensors only; save the network's state dict alone.")
    return {str(name).removeprefix(_PARALLEL): tensor for name, tensor in content.items()}


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file of ours: tensors and metadata. Raises `CheckpointError` where it is broken."""
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            return tensors, dict(opened.metadata() or {})
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        # torch refuses shapes that the format allows, with errors of its own.
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); it may be truncated.") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Replace a safetensors file as a whole. Raises `OSError` where the disk is full."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(on_cpu, temporary, metadata)
        except safetensors.SafetensorError as error:
            # The library tells of a full disk in words only.
            if "os error 28" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
        _sort_metadata(temporary)
        # The library makes files for their owner alone; models are given to others as any file is.
        temporary.chmod(mode)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, whose order is random, so that equal contents are equal files."""
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = msgspec.json.decode(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = msgspec.json.encode(header).ljust(size)
        # Names that the two libraries escape differently may take more room; then the file stays as it is.
        if header["__metadata__"] and len(ordered) == size:
            file.seek(8)
            file.write(ordered)


def check_fit(
    tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: Path | str, remedy: str
) -> None:
    """Raise `CheckpointError` where weights do not fit a network, naming what is wrong.

    wanted  the network's state dict; its tensors may be on the device "meta"
    where   what messages call the weights: usually their file
    remedy  what to do about it, the end of the sentence

    Counters of BatchNorm may be missing. The precision is free, but whole numbers are no weights.
    """
    shared = sorted(wanted.keys() & tensors.keys())
    # Weights may come in any precision, but not as the whole numbers of a quantised network.
    kinds = {
        name: [(kind.shape, kind.is_floating_point()) for kind in (tensors[name], wanted[name])] for name in shared
    }
    misshapen = [name for name, (ours, theirs) in kinds.items() if ours != theirs and not _is_counter(name)]
    shapes = f" ({_kind(tensors[misshapen[0]])}, not {_kind(wanted[misshapen[0]])})" if misshapen else ""
    faults = {
        "misses": sorted(name for name in wanted.keys() - tensors.keys() if not _is_counter(name)),
        "has left over": sorted(tensors.keys() - wanted.keys()),
        "has in another shape": misshapen,
        "has with NaN or infinity": [name for name in shared if not bool(tensors[name].isfinite().all())],
    }
    said = [f"{what} {listed(names)}{shapes if names is misshapen else ''}" for what, names in faults.items() if names]
    if said:
        raise CheckpointError(f"{where} does not fit the network: it {' and '.join(said)}; {remedy}")


def load_weights(
    network: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    where: Path | str,
    remedy: str = "put the config and the vocabulary that belong to it beside it.",
    ignored: tuple[str, ...] = (),
) -> None:
    """Copy weights into a network, or into a part of one that is on the device "meta", which takes the tensors over.

    where, remedy  as in `check_fit`
    ignored        tensors whose names begin so are not needed

    Raises `CheckpointError` where they do not fit, naming what is missing, left over, misshapen or not finite.
    """
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(ignored)}
    ours = {name: tensor for name, tensor in tensors.items() if not name.startswith(ignored)}
    check_fit(ours, wanted, where, remedy)
    counters = {name: torch.tensor(0) for name in wanted.keys() - ours.keys()}
    network.load_state_dict(ours | counters, strict=False, assign=any(tensor.is_meta for tensor in wanted.values()))


def load_tensors(network: nn.Module, path: Path, ignored: tuple[str, ...] = ()) -> None:
    """Copy anybody's file of weights into a network, but for tensors whose names begin as `ignored` says.

    Raises `CheckpointError` where the file cannot be read or does not fit.
    """
    load_weights(network, read_tensor_file(path), path, "name the weights of this network.", ignored)


def listed(names: list[str]) -> str:
    """The first few names, for a message; what a terminal would act on is escaped."""
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(repr(name[:100])[1:-1] for name in names[:NAMES_LISTED]) + more


def fingerprint_of(settings: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of a recipe and of weights by name, whatever file they came in."""
    digest = hashlib.sha256(settings.encode())
    hash_tensors(digest, tensors)
    return digest.hexdigest()


def hash_tensors(digest: hashlib._Hash, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add weights, as float32, to a hash in the order of their names; whole numbers, such as counters, are left out."""
    for name in sorted(tensors):
        if tensors[name].is_floating_point():
            digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
            digest.update(tensors[name].detach().cpu().float().contiguous().numpy().astype("<f4").data)


def from_hub(name: str, load: Callable[[], _Network]) -> _Network:
    """What `load` downloads, or finds where it was downloaded before. Raises `ConfigError` where it cannot."""
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:
        # Hubs fail in as many ways as networks do.
        raise ConfigError(
            f"the weights of '{name}' cannot be had from the hub ({type(error).__name__}: {one_line(error)}); name a"
            " copy of them with --weights."
        ) from error


def not_here(name: str) -> ConfigError:
    """The error where weights of an extractor, as --extractor names it, are not here and may not be downloaded."""
    shown = repr(name[:200])[1:-1]  # it may come from somebody else's file
    return ConfigError(
        f"the weights of '{shown}' are not on this machine, and nothing is downloaded because a model or an index names"
        f" it; to download them, type `vsrn extract PHOTOS -o STORE --extractor {shown}`."
    )


def downloaded_before(url: str) -> Path | None:
    """Where torch keeps what it downloaded from an address, or None where it never did; no server is asked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    return path if path.is_file() else None


def _is_counter(name: str) -> bool:
    """Whether this is BatchNorm's counter of training steps: files from before 2018 lack it, and nothing reads it."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _kind(tensor: torch.Tensor) -> str:
    whole = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{whole}"
