"""A model on disk, the portable part of a run: config.toml, vocabulary.json, model.safetensors."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn
from typing_extensions import TypeVar

from vsrn.config import Config, ModelConfig, config_to_toml, read_config
from vsrn.data.region_store import RegionNames, StoreInfo
from vsrn.data.vocabulary import Vocabulary, read_vocabulary
from vsrn.errors import CheckpointError
from vsrn.extractors.provenance import carry_names, carry_weights, kept_names, kept_weights
from vsrn.files import replacing, write_atomically
from vsrn.model.base import MatchingModel
from vsrn.model.scan import SCAN
from vsrn.model.vsrn import VSRN

CONFIG_FILE = "config.toml"
VOCABULARY_FILE = "vocabulary.json"
WEIGHTS_FILE = "model.safetensors"


def _vsepp(config: ModelConfig, vocabulary_size: int) -> MatchingModel:
    from vsrn.model.vsepp import VSEPP  # noqa: PLC0415 - packages of image networks take long to import

    return VSEPP(config, vocabulary_size)


# The one place that turns `model.kind` into a class.
KINDS: dict[str, Callable[[ModelConfig, int], MatchingModel]] = {"vsrn": VSRN, "vsepp": _vsepp, "scan": SCAN}

# Most of the package works on vectors, so a model without further word is a VSRN.
ModelT_co = TypeVar("ModelT_co", bound=MatchingModel, default=VSRN, covariant=True)


@dataclass(frozen=True)
class StoredModel(Generic[ModelT_co]):
    """A model and everything needed to use it.

    regions            which extractor made the regions it learned from; empty where nobody recorded it
    extractor_weights  that extractor's weights, where they are kept beside the model
    region_names       what its regions' classes and attributes are called, where that is kept
    """

    config: Config
    vocabulary: Vocabulary
    model: ModelT_co
    regions: StoreInfo = field(default_factory=StoreInfo)
    extractor_weights: Path | None = None
    region_names: RegionNames = field(default_factory=RegionNames)


def write_model(folder: Path, stored: StoredModel[MatchingModel]) -> None:
    """Write the portable part of a run; the weights come last, so a folder that has them is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG_FILE, config_to_toml(stored.config).encode())
    write_atomically(folder / VOCABULARY_FILE, stored.vocabulary.to_json())
    if stored.extractor_weights is not None:
        carry_weights(stored.extractor_weights, folder)
    carry_names(stored.region_names, folder)
    write_weights(folder, stored)


def write_weights(folder: Path, stored: StoredModel[MatchingModel]) -> None:
    """Write model.safetensors alone, naming the vocabulary and the regions it belongs to."""
    metadata = {
        "vocabulary": stored.vocabulary.fingerprint,
        "extractor": stored.regions.extractor,
        "extractor_fingerprint": stored.regions.fingerprint,
    }
    write_tensors(folder / WEIGHTS_FILE, stored.model.state_dict(), metadata)


def read_model(folder: Path | str) -> StoredModel:
    """Read a VSRN, as `read_any_model` does. Raises `CheckpointError` where the folder holds another kind too."""
    stored = read_any_model(folder)
    model = stored.model
    if not isinstance(model, VSRN):
        raise CheckpointError(
            f'{folder} is a model of kind "{stored.config.model.kind}", which has no vector of an image; use it with'
            " `vsrn evaluate`, by itself or behind --rerank, and name a VSRN here."
        )
    kept = (stored.regions, stored.extractor_weights, stored.region_names)
    return StoredModel(stored.config, stored.vocabulary, model, *kept)


def read_any_model(folder: Path | str) -> StoredModel[MatchingModel]:
    """Read a run's best model, or a converted one, of whatever kind, onto the CPU in evaluation mode.

    Raises `CheckpointError` where the folder is no model, or its parts do not belong together.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{folder} is not a trained model: it has no {WEIGHTS_FILE}; make one with `vsrn train`, or"
            " `vsrn convert` for a checkpoint of 2019."
        )
    config = read_config(folder / CONFIG_FILE)
    vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
    weights, metadata = read_tensors(folder / WEIGHTS_FILE)
    if metadata.get("vocabulary", vocabulary.fingerprint) != vocabulary.fingerprint:
        raise CheckpointError(
            f"{folder / VOCABULARY_FILE} is not the vocabulary that {WEIGHTS_FILE} learned with; put that one back."
        )
    if config.model.feature_dim is None:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} does not say model.feature_dim; put the model's own config back."
        )
    model = build_any_model(config, vocabulary, empty=True)
    load_weights(model, weights, folder / WEIGHTS_FILE)
    regions = StoreInfo(metadata.get("extractor", ""), metadata.get("extractor_fingerprint", ""))
    return StoredModel(config, vocabulary, model.eval(), regions, kept_weights(folder), kept_names(folder))


def build_model(config: Config, vocabulary: Vocabulary) -> VSRN:
    """A fresh VSRN of the config's sizes."""
    model = build_any_model(config, vocabulary)
    assert isinstance(model, VSRN), config.model.kind
    return model


def build_any_model(config: Config, vocabulary: Vocabulary, *, empty: bool = False) -> MatchingModel:
    """A fresh model of the config's kind and sizes; an `empty` one takes no memory until `load_weights` fills it."""
    with torch.device("meta") if empty else contextlib.nullcontext():
        return KINDS[config.model.kind](config.model, len(vocabulary))


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Copy weights into a model or a part of one. Raises `CheckpointError` naming what does not fit."""
    wanted = model.state_dict()
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not fit its config: {len(missing)} tensors are missing ({', '.join(missing[:3]) or 'none'})"
            f" and {len(unexpected)} are unknown ({', '.join(unexpected[:3]) or 'none'})."
        )
    for name, tensor in wanted.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{path} does not fit its config or vocabulary: {name} has shape {tuple(weights[name].shape)} where"
                f" {tuple(tensor.shape)} is called for."
            )
    # An empty model takes the tensors themselves, any other copies them to where its own are.
    model.load_state_dict(weights, assign=any(tensor.is_meta for tensor in wanted.values()))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
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
        # The library makes files for their owner alone; models are given to others as any file is.
        temporary.chmod(mode)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises `CheckpointError` where it is broken."""
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            return tensors, dict(opened.metadata() or {})
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        # torch refuses shapes that the format allows, with errors of its own.
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); it may be truncated.") from error
