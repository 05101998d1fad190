"""A model on disk, the portable part of a run: config.toml, vocabulary.json, model.safetensors."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn
from typing_extensions import TypeVar

from vsrn.config import Config, config_to_toml, read_config
from vsrn.data.region_store import RegionNames, RegionStore, StoreInfo
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.vocabulary import Vocabulary, read_vocabulary
from vsrn.errors import CheckpointError, DataError
from vsrn.extractors.provenance import carry_names, carry_weights, kept_names, kept_weights
from vsrn.files import replacing, write_atomically
from vsrn.model.base import BaseModel, MatchingModel
from vsrn.model.build import build_any_model

CONFIG_FILE = "config.toml"
VOCABULARY_FILE = "vocabulary.json"
WEIGHTS_FILE = "model.safetensors"

# Most of the package works on vectors, so `StoredModel` alone is one of a model that has them.
ModelT_co = TypeVar("ModelT_co", bound=BaseModel, default=MatchingModel, covariant=True)


@dataclass(frozen=True)
class StoredModel(Generic[ModelT_co]):
    """A model and everything needed to use it.

    regions            which extractor made the regions it was trained on; empty where nobody recorded it
    extractor_weights  that extractor's weights, where they are kept beside the model
    region_names       what its regions' classes and attributes are called, where that is kept
    """

    config: Config
    vocabulary: Vocabulary
    model: ModelT_co
    regions: StoreInfo = field(default_factory=StoreInfo)
    extractor_weights: Path | None = None
    region_names: RegionNames = field(default_factory=RegionNames)

    def check_split(self, split: CaptionedImages) -> None:
        """Raise `DataError` where a split's images are not what this model learned from."""
        reads_photos = bool(self.config.model.network.name)
        if isinstance(split, Split) == reads_photos:
            holds, wants = ("regions", "photos") if reads_photos else ("photos", "regions")
            raise DataError(f"{split.folder} holds {holds}, but this model reads {wants}; evaluate it by itself.")
        if isinstance(split, Split):
            self.check_store(split.regions)

    def check_store(self, store: RegionStore) -> None:
        """Raise `DataError` where a store's regions cannot be what this model learned from."""
        self.check_regions(str(store.folder / f"{store.split}_ims.npy"), store.feature_dim, store.info)

    def check_regions(self, where: str, feature_dim: int, theirs: StoreInfo) -> None:
        """Raise `DataError` where regions cannot be what this model learned from.

        where        the file that holds them, for the message
        feature_dim  their numbers per region
        theirs       what made them
        """
        wanted, ours = self.config.model.feature_dim, self.regions
        if feature_dim != wanted:
            raise DataError(
                f"{where} has regions of {feature_dim} numbers, but this model reads {wanted};"
                " extract the photos as its training data was."
            )
        if theirs.fingerprint and ours.fingerprint and theirs.fingerprint != ours.fingerprint:
            raise DataError(
                f"{where} was made by '{theirs.extractor}' ({theirs.fingerprint[:12]}), but this model learned from"
                f" '{ours.extractor}' ({ours.fingerprint[:12]}); extract the photos as its training data was."
            )


def write_model(folder: Path, stored: StoredModel[BaseModel]) -> None:
    """Write the portable part of a run; the weights are written last, so a folder that has them is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG_FILE, config_to_toml(stored.config).encode())
    write_atomically(folder / VOCABULARY_FILE, stored.vocabulary.to_json())
    if stored.extractor_weights is not None:
        carry_weights(stored.extractor_weights, folder)
    carry_names(stored.region_names, folder)
    write_weights(folder, stored)


def write_weights(folder: Path, stored: StoredModel[BaseModel]) -> None:
    """Write model.safetensors alone, naming the vocabulary and the regions it belongs to."""
    metadata = {
        "vocabulary": stored.vocabulary.fingerprint,
        "extractor": stored.regions.extractor,
        "extractor_fingerprint": stored.regions.fingerprint,
    }
    write_tensors(folder / WEIGHTS_FILE, stored.model.state_dict(), metadata)


def read_model(folder: Path | str) -> StoredModel:
    """Read a model with a vector for each image and each caption, onto the CPU in evaluation mode.

    Raises `CheckpointError` where the folder is no model, its parts do not belong together, or it has no vectors.
    """
    stored = read_any_model(folder)
    model = stored.model
    if not isinstance(model, MatchingModel):
        raise CheckpointError(
            f'{folder} is a model of kind "{stored.config.model.kind}", which has no vector of an image; use it with'
            " `vsrn evaluate`, by itself or after --rerank, and name a VSRN here."
        )
    kept = (stored.regions, stored.extractor_weights, stored.region_names)
    return StoredModel(stored.config, stored.vocabulary, model, *kept)


def read_any_model(folder: Path | str) -> StoredModel[BaseModel]:
    """Read a run's best model, or a converted one, of any kind, onto the CPU in evaluation mode.

    Raises `CheckpointError` where the folder is no model, or its parts do not belong together, and `ConfigError` where
    its config names a part that nobody registered.
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
    model = build_any_model(config, vocabulary, empty=True, where=str(folder / CONFIG_FILE))
    load_weights(model, weights, folder / WEIGHTS_FILE)
    regions = StoreInfo(metadata.get("extractor", ""), metadata.get("extractor_fingerprint", ""))
    return StoredModel(config, vocabulary, model.eval(), regions, kept_weights(folder), kept_names(folder))


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
