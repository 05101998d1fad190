"""A run folder and everything a run needs, checked before the first step and before anything is written."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vsrn.config import Config, ModelConfig, check_config, config_to_toml, read_config
from vsrn.data.photo_splits import open_split_for
from vsrn.data.region_store import RegionStore, StoreInfo
from vsrn.data.splits import CaptionedImages, Split, hold_out
from vsrn.data.vocabulary import Vocabulary, build_vocabulary, read_vocabulary
from vsrn.data.word_vectors import read_word_vectors
from vsrn.errors import CheckpointError, ConfigError, DataError
from vsrn.extractors.provenance import carry_names, carry_weights, kept_names, kept_weights, weights_of
from vsrn.files import write_atomically
from vsrn.model.base import BaseModel
from vsrn.model.registry import LOSSES, build_model, check_parts
from vsrn.model.saved import CONFIG_FILE, VOCABULARY_FILE, StoredModel
from vsrn.training.checkpoint import STATE_FILE


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start or be resumed: data open, model and loss built, and a folder that is free or its own."""

    folder: Path
    config: Config
    train: CaptionedImages
    validation: CaptionedImages
    vocabulary: Vocabulary
    model: BaseModel
    loss: nn.Module

    @property
    def regions(self) -> StoreInfo:
        """The extractor of the regions it is trained on; empty for photos."""
        return self.train.regions.info if isinstance(self.train, Split) else StoreInfo()

    def stored(self) -> StoredModel[BaseModel]:
        """The model as it is saved."""
        kept = (kept_weights(self.folder), kept_names(self.folder))
        return StoredModel(self.config, self.vocabulary, self.model, self.regions, *kept)


def prepare_run(config: Config, folder: Path, *, resume: bool, process: int = 0) -> PreparedRun:
    """Open the data, build vocabulary and model, and lay out the run folder; of several processes, the first does.

    Raises `ConfigError` or `DataError` where the config does not fit the data, and `CheckpointError`
    where the folder already holds a run (or, to resume, holds none); then nothing has been written.
    """
    check_config(config)
    check_parts(config)
    # Bounds oneDNN's cache of compiled kernels, of which it keeps one for each of the thousand shapes of captions; it
    # reads this before its first product. Unbounded, bf16 training takes half a gigabyte more, at no gain.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if resume:
        _check_same_config(config, folder)
    elif process == 0 and ((folder / CONFIG_FILE).exists() or (folder / STATE_FILE).exists()):
        raise CheckpointError(
            f"{folder} already holds a run; add --resume to go on with it, or choose another folder with -o."
        )
    train, validation = open_training_splits(config)
    config = _with_feature_dim(config, train)
    vocabulary = _vocabulary_for(config, folder, train, resume=resume)
    torch.manual_seed(config.train.seed)
    model: BaseModel = build_model(config, vocabulary)
    if not resume:
        for part in model.image_encoders:
            part.load_first_weights()
        if config.data.word_vectors:
            _start_words(model, config, vocabulary)
    loss = LOSSES.make(config.loss.matching, config.loss)
    prepared = PreparedRun(folder, config, train, validation, vocabulary, model, loss)
    if process > 0:
        # The processes start from the same weights and drop different inputs.
        torch.manual_seed(config.train.seed + process * 2**32)
    elif not resume:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(train, Split):
            weights = weights_of(train.regions)
            if weights is not None:
                carry_weights(weights, folder)
            carry_names(train.regions.names, folder)
        write_atomically(folder / VOCABULARY_FILE, vocabulary.to_json())
        write_atomically(folder / CONFIG_FILE, config_to_toml(config).encode())
    return prepared


def open_training_splits(config: Config) -> tuple[CaptionedImages, CaptionedImages]:
    """The split to learn from and the one that chooses the best model."""
    data = config.data
    train = open_split_for(config, data.train)
    if data.held_out:
        train, validation = hold_out(train, Path(data.held_out))
    else:
        validation = open_split_for(config, data.validation)
    if isinstance(train, Split):
        if isinstance(validation, Split):
            _check_one_extractor(train.regions, validation.regions)
        # Of the training split only: by the first validation the projection has learned a bias.
        train = dataclasses.replace(train, zeros_divide=zeros_divide(config.model))
    return train, validation


def zeros_divide(model: ModelConfig) -> bool:
    """Whether a fresh model of vsrn's own parts divides 0 by 0 on an image of zeros, as the 2019 code does.

    The projection's bias is still 0, so zeros stay zeros until they are divided by their length: that of a channel over
    the regions, or that of the pooled image. The GRU that pools has a bias from the start; SCAN adds an epsilon.
    """
    if model.kind == "scan":
        return False
    over_regions = model.kind == "vsrn" and model.normalisation != "none"
    pooled_zeros = model.kind == "vsepp" or model.aggregator in ("mean", "gpo")
    return over_regions or (pooled_zeros and model.image_norm)


def _check_one_extractor(train: RegionStore, validation: RegionStore) -> None:
    ours, theirs = train.info.fingerprint, validation.info.fingerprint
    if ours and theirs and ours != theirs:
        raise DataError(
            f"in {train.folder}, split '{train.split}' was made by '{train.info.extractor}' ({ours[:12]}) and split"
            f" '{validation.split}' by '{validation.info.extractor}' ({theirs[:12]}); extract both alike."
        )


def _with_feature_dim(config: Config, train: CaptionedImages) -> Config:
    """The config with the numbers of a region's features, or of the model's own network for a photo."""
    if isinstance(train, Split):
        actual = train.regions.feature_dim
    else:
        from vsrn.model.vsepp import feature_dim_of  # noqa: PLC0415 - packages of networks take long to import

        actual = feature_dim_of(config.model.network.name)
    if config.model.feature_dim not in (None, actual):
        raise ConfigError(
            f"model.feature_dim is {config.model.feature_dim}, but the images in {train.folder} have {actual} numbers;"
            " leave it out to take what is there."
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, feature_dim=actual))


def _vocabulary_for(config: Config, folder: Path, train: CaptionedImages, *, resume: bool) -> Vocabulary:
    if resume:
        return read_vocabulary(folder / VOCABULARY_FILE)
    if config.data.vocabulary:
        return read_vocabulary(config.data.vocabulary)
    return build_vocabulary(train.captions, config.data.min_count)


def _start_words(model: BaseModel, config: Config, vocabulary: Vocabulary) -> None:
    """Set the text encoder's vectors of words to those of a file; words that it lacks stay random."""
    path, words = config.data.word_vectors, model.words
    if words is None:
        raise ConfigError("data.word_vectors is for a text encoder that has vectors of words; leave it out.")
    vectors = read_word_vectors(path, vocabulary.words)
    size = len(next(iter(vectors.values())))
    if size != config.model.word_dim:
        raise ConfigError(
            f"model.word_dim is {config.model.word_dim}, but the vectors in {path} have {size} numbers;"
            f" set it to {size}."
        )
    with torch.no_grad():
        for word, vector in vectors.items():
            words.weight[vocabulary.ids[word]] = torch.from_numpy(vector)


def _check_same_config(config: Config, folder: Path) -> None:
    """Raise `ConfigError` where a resumed run's config is not the one it was begun with, naming the field."""
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} holds no run to resume; leave out --resume to start one there.")
    begun = read_config(folder / CONFIG_FILE)
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(begun)
    # The device does not change what a run computes, and the feature size may have been read from the data.
    for table in (ours, theirs):
        table["train"].pop("device")
    if ours["model"]["feature_dim"] is None:
        theirs["model"]["feature_dim"] = None
    for section in ours:
        for name, value in ours[section].items():
            if value != theirs[section][name]:
                raise ConfigError(
                    f"{folder} was begun with {section}.{name} = {theirs[section][name]!r}, not {value!r};"
                    " resume it with its own config, or start another run with -o."
                )
