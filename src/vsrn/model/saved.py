"""A model on disk, the portable part of a run: config.toml, vocabulary.json, model.safetensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

import torch
from typing_extensions import TypeVar

from vsrn.config import Config, ModelConfig, config_to_toml, read_config
from vsrn.data.region_store import RegionNames, RegionStore, StoreInfo
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.vocabulary import Vocabulary, read_vocabulary
from vsrn.errors import CheckpointError, DataError
from vsrn.extractors.provenance import carry_names, carry_weights, kept_names, kept_weights
from vsrn.files import write_atomically
from vsrn.model.base import MatchingModel
from vsrn.model.scan import SCAN
from vsrn.model.vsrn import VSRN
from vsrn.tensors import load_weights, read_tensors, write_tensors

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

    def refuse_other_images(self, split: CaptionedImages) -> None:
        """Raise `DataError` where a split's images cannot be what this model learned from."""
        reads_photos = bool(self.config.model.network.name)
        if isinstance(split, Split) == reads_photos:
            holds, wants = ("regions", "photos") if reads_photos else ("photos", "regions")
            raise DataError(f"{split.folder} holds {holds}, but this model reads {wants}; evaluate it by itself.")
        if isinstance(split, Split):
            self.refuse_other_regions(split.regions)

    def refuse_other_regions(self, store: RegionStore) -> None:
        """Raise `DataError` where a store's regions cannot be what this model learned from."""
        self.refuse_regions(str(store.folder / f"{store.split}_ims.npy"), store.feature_dim, store.info)

    def refuse_regions(self, where: str, feature_dim: int, theirs: StoreInfo) -> None:
        """The same of regions elsewhere, which `where` names."""
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
