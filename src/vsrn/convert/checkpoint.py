"""A checkpoint published in 2018 or 2019 -> our config and weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vsrn.config import Config, check_config
from vsrn.convert.names import CAPTIONER_KEYS, SCAN, VSRN, is_vsepp, training_config, vsepp_family
from vsrn.convert.unpickle import load_pickled_tensors
from vsrn.errors import CheckpointError

# What training programs call the checkpoint, or its weights, inside of their own.
_WRAPPERS = ("model", "state_dict", "checkpoint")
# What the original calls its encoders, and their names begin with where both are in one table.
_ENCODERS = ("img_enc", "txt_enc")
_PARALLEL = re.compile(r"(?:(?<=\.)|^)module\.")


@dataclass(frozen=True)
class LegacyModel:
    """A published checkpoint in our terms.

    weights          our parameter names -> tensors on the CPU
    vocabulary_size  words that its text encoder knows
    options          the original's command-line options, for the record
    """

    config: Config
    weights: dict[str, torch.Tensor]
    vocabulary_size: int
    options: dict[str, Any]


def read_checkpoint(path: Path, captioner: Path | None = None) -> LegacyModel:
    """Read a published checkpoint, and the captioner saved beside it where there is one.

    Raises `CheckpointError` where a file is missing, truncated, foreign, or names anything not on the closed list.
    """
    content = _unwrapped(load_pickled_tensors(path))
    if not isinstance(content, dict) or not {"model", "state_dict"} & content.keys() or "opt" not in content:
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: it has no 'model' and 'opt'.")
    parts, options = _pair(content["model"] if "model" in content else content["state_dict"]), content["opt"]
    if not isinstance(options, argparse.Namespace):
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: its 'opt' is not a table of options.")
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: its 'model' is not a pair of encoders.")
    try:
        family = SCAN if "cross_attn" in options else vsepp_family(vars(options)) if is_vsepp(parts[0]) else VSRN
        weights = _renamed(parts[0], family.images, path) | _renamed(parts[1], family.captions, path)
        if captioner is not None:
            weights |= _captioner_weights(captioner)
        config = training_config(family.model_of(vars(options), weights), vars(options))
        check_config(config, where="its options")
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        fact = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: {fact}.") from error
    size = len(weights[f"{family.captions['embed.']}weight"])
    return LegacyModel(config, weights, vocabulary_size=size, options=dict(vars(options)))


def _unwrapped(content: object) -> object:
    """What a training program put around a checkpoint is taken off."""
    while isinstance(content, dict) and "opt" not in content:
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)]
        if not inner:
            break
        content = inner[0]
    return content


def _pair(parts: object) -> object:
    """The pair of encoders, of a pair or one table of tensors, without `module.` in names; anything else as it is."""
    if isinstance(parts, dict):
        named = _without_parallel(parts)
        sides: dict[str, dict[str, Any]] = {one: {} for one in _ENCODERS}
        for name, value in named.items():
            side, _, rest = str(name).partition(".")
            if side not in sides:
                return parts
            # Under the bare name of an encoder lies its own table.
            sides[side] |= {rest: value} if rest else value if isinstance(value, dict) else {"": value}
        parts = [*sides.values()]
    return [_without_parallel(part) for part in parts] if isinstance(parts, (list, tuple)) else parts


def _without_parallel(part: Any) -> Any:
    """A table of tensors without the `module.` that `nn.DataParallel` puts into names, wherever it wrapped a part."""
    if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
        return part
    renamed = {_PARALLEL.sub("", name): tensor for name, tensor in part.items()}
    # Two tensors of one name would be lost; the table of names refuses what has `module.` left.
    return renamed if len(renamed) == len(part) else part


def _is_plain(value: object) -> bool:
    """Whether this is a tensor of real numbers whose every element is in the file."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _renamed(part: object, table: Mapping[str, str], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a part under our names. Raises `CheckpointError` on any other thing or name."""
    if not isinstance(part, dict) or not all(isinstance(name, str) and _is_plain(part[name]) for name in part):
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: a part of it is not a table of tensors.")
    renamed = {}
    for name, tensor in part.items():
        start = next((start for start in table if name.startswith(start)), None)
        if start is None:
            raise CheckpointError(f"{path} holds {name[:100]!r}, which no VSRN of 2019 has; it is another model's.")
        # A 1x1 convolution over regions is a linear layer with one more axis.
        kernel = tensor[..., 0] if tensor.ndim == 3 else tensor
        renamed[table[start] + name.removeprefix(start)] = kernel.contiguous()
    return renamed


def _captioner_weights(path: Path) -> dict[str, torch.Tensor]:
    """The captioner of a file of its own. Raises `CheckpointError` where there is none."""
    content = load_pickled_tensors(path)
    if not isinstance(content, dict) or "captioner" not in content:
        raise CheckpointError(f"{path} holds no 'captioner'.")
    return _renamed(_without_parallel(content["captioner"]), CAPTIONER_KEYS, path)
