"""A run folder and everything a run needs, checked before the first step and before anything is written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vsrn.config import PRETRAINED_TEXT, Config, ModelConfig, check_config, read_config
from vsrn.configs import find_packaged
from vsrn.data.photo_splits import open_split_for
from vsrn.data.region_store import RegionStore, StoreInfo
from vsrn.data.splits import CaptionedImages, Split, hold_out
from vsrn.data.vocabulary import Vocabulary, build_vocabulary, read_vocabulary
from vsrn.data.word_vectors import read_word_vectors
from vsrn.errors import CheckpointError, ConfigError, DataError
from vsrn.extractors.provenance import kept_names, kept_weights, weights_of
from vsrn.model.base import BaseModel
from vsrn.model.registry import LOSSES, build_model, check_parts
from vsrn.model.saved import CONFIG_FILE, VOCABULARY_FILE, StoredModel, write_settings
from vsrn.training.checkpoint import DATA_KEY, EXTRACTOR_KEY, STATE_FILE
from vsrn.training.loggers import check_loggers
from vsrn.training.resume import Changes, changes_on_resume, data_fingerprint, read_first_model, take_weights


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start or be resumed: data open, model and loss built, and a folder that is free or its own.

    origin   fingerprints of extractor and data, as a checkpoint has them
    notes    sentences about settings that are not what one may think, for a person
    changes  fields of the config that changed on resume: name -> (value then, value now)
    """

    folder: Path
    config: Config
    train: CaptionedImages
    validation: CaptionedImages
    vocabulary: Vocabulary
    model: BaseModel
    loss: nn.Module
    origin: dict[str, str]
    notes: list[str]
    changes: Changes

    def stored(self) -> StoredModel[BaseModel]:
        """The model as it is saved."""
        kept = kept_weights(self.folder), kept_names(self.folder)
        regions = self.train.regions.info if isinstance(self.train, Split) else StoreInfo()
        return StoredModel(self.config, self.vocabulary, self.model, regions, *kept)


def prepare_run(config: Config, folder: Path, *, resume: bool, process: int = 0) -> PreparedRun:
    """Open the data, build vocabulary and model, and lay out the run folder; of several processes, the first does.

    Raises `ConfigError` or `DataError` where the config does not fit the data, and `CheckpointError`
    where the folder already holds a run (or, to resume, holds none); then nothing has been written.
    """
    check_config(config)
    check_parts(config)
    check_loggers(config)
    # Bounds oneDNN's cache of compiled kernels, of which it keeps one for each of the thousand shapes of captions; it
    # reads this before its first product. Unbounded, bf16 training takes half a gigabyte more, at no gain.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    changes: Changes = {}
    if resume:
        changes = changes_on_resume(config, folder)
    elif process == 0 and ((folder / CONFIG_FILE).exists() or (folder / STATE_FILE).exists()):
        raise CheckpointError(
            f"{folder} already holds a run; add --resume to go on with it, or choose another folder with -o."
        )
    train, validation = open_training_splits(config)
    config = _with_feature_dim(config, train)
    first = None if resume else read_first_model(config)
    config, pieces = _with_text_encoder(config, folder, first, resume=resume)
    vocabulary = pieces or (first.vocabulary if first is not None else None)
    if vocabulary is None:
        given = folder / VOCABULARY_FILE if resume else config.data.vocabulary
        vocabulary = read_vocabulary(given) if given else build_vocabulary(train.captions, config.data.min_count)
    notes = list(_notes(config, train))
    torch.manual_seed(config.train.seed)
    model: BaseModel = build_model(config, vocabulary)
    extractor = train.regions.info.fingerprint if isinstance(train, Split) else ""
    if first is not None:
        notes += take_weights(model, config, first, extractor)
    elif not resume:
        for part in model.encoders:
            part.load_first_weights()
        if config.data.word_vectors:
            _start_words(model, config, vocabulary)
    loss = LOSSES.make(config.loss.matching, config.loss)
    origin = {EXTRACTOR_KEY: extractor, DATA_KEY: data_fingerprint(train, validation)}
    prepared = PreparedRun(folder, config, train, validation, vocabulary, model, loss, origin, notes, changes)
    if process > 0:
        # The processes start from the same weights and drop different inputs.
        torch.manual_seed(config.train.seed + process * 2**32)
    elif not resume:
        kept = (weights_of(train.regions), train.regions.names) if isinstance(train, Split) else ()
        write_settings(folder, StoredModel(config, vocabulary, model, StoreInfo(), *kept))
    return prepared


def open_training_splits(config: Config) -> tuple[CaptionedImages, CaptionedImages]:
    """The split to learn from and the one that chooses the best model."""
    data = config.data
    train = open_split_for(config, data.train)
    if data.held_out:
        train, validation = hold_out(train, find_packaged(data.held_out))
    else:
        validation = open_split_for(config, data.validation)
    if isinstance(train, Split):
        if isinstance(validation, Split):
            _check_alike(train.regions, validation.regions)
        # Of the training split only: by the first validation the projection has learned a bias.
        train = dataclasses.replace(train, zeros_divide=zeros_divide(config.model))
    return train, validation


def zeros_divide(model: ModelConfig) -> bool:
    """Whether a fresh model of vsrn's own parts divides 0 by 0 on an image of zeros, as the 2019 code does.

    The projection's bias is still 0, so zeros stay zeros until they are divided by the length of a channel or of the
    pooled image. The GRU that pools has a bias from the start; SCAN adds an epsilon.
    """
    if model.kind == "scan":
        return False
    over_regions = model.kind == "vsrn" and model.normalisation != "none"
    pooled_zeros = model.kind == "vsepp" or model.aggregator in ("mean", "gpo")
    return over_regions or (pooled_zeros and model.image_norm)


def _check_alike(train: RegionStore, validation: RegionStore) -> None:
    if train.feature_dim != validation.feature_dim:
        raise DataError(
            f"in {train.folder}, the images of split '{train.split}' have {train.feature_dim} numbers a region and"
            f" those of split '{validation.split}' {validation.feature_dim}; extract both alike."
        )
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


def _with_text_encoder(
    config: Config, folder: Path, first: StoredModel[BaseModel] | None, *, resume: bool
) -> tuple[Config, Vocabulary | None]:
    """The config with the architecture of its pretrained text encoder, and the encoder's pieces of words.

    Without such an encoder there are no pieces, nor where the run or the model whose weights are taken has its own.
    """
    if not config.model.text_encoder.startswith(PRETRAINED_TEXT):
        return config, None
    vocabulary, known = None, first.config if first is not None else None
    if resume:
        known = read_config(folder / CONFIG_FILE)
    architecture = known.model.text.architecture if known is not None else ""
    if not architecture:
        from vsrn.model.pretrained_text import read_source  # noqa: PLC0415 - most runs have no such encoder

        architecture, vocabulary, _ = read_source(config.model)
    text = dataclasses.replace(config.model.text, architecture=architecture)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text)), vocabulary


def _notes(config: Config, train: CaptionedImages) -> Iterator[str]:
    """A sentence for each setting that changes nothing, or not what one may think."""
    captions, size, epochs = len(train.captions), config.train.batch_size, config.train.epochs
    late = [drop for drop in config.train.learning_rate_drop if drop >= epochs]
    if late and config.train.schedule == "step":
        yield f"train.learning_rate_drop {late} lies beyond the last of {epochs} epochs and changes nothing."
    after, frozen = config.model.network.fine_tune_after, config.model.text.frozen_epochs
    if (after or 0) >= epochs:
        yield (
            f"model.network.fine_tune_after {after} lies beyond the last of {epochs} epochs: the network stays frozen."
        )
    if frozen >= epochs:
        yield f"model.text.frozen_epochs {frozen} lasts to the last of {epochs} epochs: the text encoder stays frozen."
    if size > captions:
        yield f"train.batch_size {size:,} is more than the {captions:,} captions; a batch has all {captions:,}."
    if config.train.weight_decay == 0 and config.train.optimizer == "adamw":
        yield 'train.optimizer "adamw" without train.weight_decay is Adam.'


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
