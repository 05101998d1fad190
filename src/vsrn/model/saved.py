"""A model on disk, the portable part of a run: config.toml, vocabulary.json, model.safetensors; its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Generic, cast

from typing_extensions import TypeVar

from vsrn.config import PRETRAINED_TEXT, Config, ModelConfig, config_to_toml, read_config
from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames
from vsrn.data.vocabulary import Vocabulary, read_vocabulary
from vsrn.errors import CheckpointError
from vsrn.extractors.provenance import carry_names, carry_weights, kept_names, kept_weights
from vsrn.files import write_atomically
from vsrn.model.base import BaseModel, MatchingModel
from vsrn.model.registry import build_model
from vsrn.pretrained import not_a_folder
from vsrn.tensors import hash_tensors, load_weights, read_tensors, write_tensors

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
    folder             where it was read from, or None
    """

    config: Config
    vocabulary: Vocabulary
    model: ModelT_co
    regions: StoreInfo = field(default_factory=StoreInfo)
    extractor_weights: Path | None = None
    region_names: RegionNames = field(default_factory=RegionNames)
    folder: Path | None = None


def write_model(folder: Path | str, stored: StoredModel[BaseModel]) -> None:
    """Write the portable part of a run; the weights are written last, so a folder that has them is complete."""
    write_settings(Path(folder), stored)
    write_weights(Path(folder), stored)


def write_settings(folder: Path, stored: StoredModel[BaseModel]) -> None:
    """Write all but model.safetensors, config.toml last."""
    folder.mkdir(parents=True, exist_ok=True)
    if stored.extractor_weights is not None:
        carry_weights(stored.extractor_weights, folder)
    carry_names(stored.region_names, folder)
    write_atomically(folder / VOCABULARY_FILE, stored.vocabulary.to_json())
    write_atomically(folder / CONFIG_FILE, config_to_toml(stored.config).encode())


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
    if not isinstance(stored.model, MatchingModel):
        raise CheckpointError(
            f'{folder} is a model of kind "{stored.config.model.kind}", which has no vector of an image; use it with'
            " `vsrn evaluate`, by itself or after --rerank, and name a VSRN here."
        )
    return cast("StoredModel", stored)


def read_any_model(folder: Path | str) -> StoredModel[BaseModel]:
    """Read a run's best model, or a converted one, of any kind, onto the CPU in evaluation mode.

    Raises `CheckpointError` where the folder is no model, or its parts do not belong together, and `ConfigError` where
    nobody registered a part that its config names.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(not_a_folder(folder))
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
    model = build_model(config, vocabulary, empty=True, where=str(folder / CONFIG_FILE))
    load_weights(model, weights, folder / WEIGHTS_FILE)
    regions = StoreInfo(metadata.get("extractor", ""), metadata.get("extractor_fingerprint", ""))
    return StoredModel(config, vocabulary, model.eval(), regions, kept_weights(folder), kept_names(folder), folder)


def model_fingerprint(stored: StoredModel[BaseModel]) -> str:
    """SHA-256 (hex) of everything that decides an embedding: the encoders' weights, as float32, by name, and settings.

    Settings count where no weight shows them and they are not the defaults, so that one more setting changes no
    fingerprint. The captioner is left out: a model and its export, or its copy without a captioner, have the same.
    """
    digest = hashlib.sha256()
    tensors = stored.model.state_dict()
    hash_tensors(digest, {name: tensor for name, tensor in tensors.items() if not name.startswith("captioner.")})
    digest.update("".join(_settings_without_weights(stored.config)).encode())
    if stored.config.model.kind == "scan":
        digest.update(repr(stored.config.model.scan).encode())
    return digest.hexdigest()


# Fields of `ModelConfig` that add no line of their own to a fingerprint: they show in the weights, or the function
# below has them, or fingerprints are older. Every other field is added where it is not the default.
_NOT_IN_FINGERPRINTS = {
    *("kind", "feature_dim", "joint_dim", "word_dim", "caption_layers", "caption_bidirectional", "caption_aggregator"),
    *("reasoning_layers", "aggregator", "normalisation", "image_norm", "absolute", "similarity"),
    *("captioner", "scan", "network", "text_encoder", "text"),
}


def _settings_without_weights(config: Config) -> list[str]:
    """The lines of a fingerprint for the settings that decide an embedding and show in no weight."""
    model, order, default = config.model, config.data.region_order, ModelConfig()
    pretrained = model.text_encoder.startswith(PRETRAINED_TEXT)
    settings = {
        f"model.kind = {model.kind}\n": model.kind != "vsrn",
        # The other two normalisations differ by a BatchNorm.
        "model.normalisation = none\n": model.normalisation == "none",
        "model.image_norm = false\n": not model.image_norm,
        "model.absolute = true\n": model.absolute,
        f"data.region_order = {order}\n": order != "stored",
        # vsrn's own aggregators and losses are known by the weights.
        f"model.aggregator = {model.aggregator}\n": model.aggregator not in ("gru", "mean", "gpo"),
        f"model.caption_aggregator = {model.caption_aggregator}\n": model.caption_aggregator not in ("last", "gpo"),
        f"loss.matching = {config.loss.matching}\n": config.loss.matching not in ("triplet", "contrastive"),
        # Where a pretrained text encoder lay says nothing of it; its architecture does.
        f"model.text_encoder = {model.text_encoder}\n": model.text_encoder != "gru" and not pretrained,
        f"model.text.architecture = {model.text.architecture}\n": pretrained,
    }
    for name in (entry.name for entry in fields(model)):
        value = getattr(model, name)
        if name not in _NOT_IN_FINGERPRINTS:
            settings[f"model.{name} = {value}\n"] = value != getattr(default, name)
    return [setting for setting, holds in settings.items() if holds]
