"""Which fields of a config may change when a run is resumed, and starting a run from another model's weights."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from vsrn.config import Config, read_config
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.vocabulary import read_vocabulary
from vsrn.errors import CheckpointError, ConfigError
from vsrn.model.base import BaseModel
from vsrn.model.saved import CONFIG_FILE, VOCABULARY_FILE, StoredModel, read_any_model
from vsrn.pretrained import find_model
from vsrn.training.checkpoint import STATE_FILE, flat

Changes = dict[str, tuple[Any, Any]]

MAY_CHANGE = {
    # Where things lie; that they are the same is seen from what they hold.
    *("data.path", "data.photos", "data.annotations", "data.held_out", "data.vocabulary", "model.text.download"),
    # How long.
    *("train.epochs", "train.max_steps", "train.patience", "train.validate_every"),
    # How the learning rate goes from now on.
    *("train.learning_rate", "train.schedule", "train.learning_rate_drop", "train.warm_up_steps"),
    "train.text_learning_rate_factor",
    # Where it is computed and told.
    *("train.device", "train.loggers"),
}


def changes_on_resume(config: Config, folder: Path) -> Changes:
    """The fields in which a config differs from the one that a run was begun with: name -> (value then, value now).

    Raises `CheckpointError` where the folder holds no run, and `ConfigError` where a field differs that must not.
    """
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} holds no run to resume; leave out --resume to start one there.")
    begun = flat(dataclasses.asdict(read_config(folder / CONFIG_FILE)))
    wanted = flat(dataclasses.asdict(config))
    for name in ("model.feature_dim", "model.text.architecture"):
        wanted[name] = wanted[name] or begun[name]  # Without a value, the data and the text encoder gave it.
    changes = {name: (begun[name], value) for name, value in wanted.items() if value != begun[name]}
    for name, (then, now) in changes.items():
        if name not in MAY_CHANGE:
            raise ConfigError(
                f"{folder} was begun with {name} = {then!r}, not {now!r}; resume it with its own config, or start"
                f" another run with -o, which may take its weights: --train.init_from {folder}."
            )
    given, own = config.data.vocabulary, folder / VOCABULARY_FILE
    if (
        "data.vocabulary" in changes
        and given
        and read_vocabulary(given).fingerprint != read_vocabulary(own).fingerprint
    ):
        raise ConfigError(f"{folder} was begun with another vocabulary than {given}; leave it out.")
    return changes


def data_fingerprint(*splits: CaptionedImages) -> str:
    """SHA-256 (hex) of the captions of splits, of which image each belongs to, and of three images' regions.

    It is the same wherever the data lies. All of COCO's regions would take minutes.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update("\n".join(split.captions).encode())
        digest.update(split.image_of_caption.astype("<i8").tobytes())
        if isinstance(split, Split):
            some = split.rows[[0, len(split.rows) // 2, -1]]
            digest.update(split.regions.read(some).astype("<f4").tobytes())
    return digest.hexdigest()


def read_first_model(config: Config) -> StoredModel[BaseModel] | None:
    """The model that `train.init_from` names; None where it names none.

    Raises `CheckpointError` where it cannot be read, and `ConfigError` where data.vocabulary names another vocabulary.
    """
    if not config.train.init_from:
        return None
    first = read_any_model(find_model(config.train.init_from))
    given = config.data.vocabulary
    if given and read_vocabulary(given).fingerprint != first.vocabulary.fingerprint:
        raise ConfigError(
            f"data.vocabulary {given} is not the vocabulary of train.init_from {config.train.init_from}, whose weights"
            " belong to its own words; leave data.vocabulary out."
        )
    return first


def take_weights(model: BaseModel, config: Config, first: StoredModel[BaseModel], extractor: str) -> list[str]:
    """Give a fresh model the weights of another; its captioner's too where both have one of the same sizes.

    extractor  fingerprint of the extractor of the regions that it will learn from; empty where nobody recorded it

    Returns sentences about what differs though the weights fit. Raises `ConfigError`, naming fields, where they do not.
    """
    origin = config.train.init_from
    ours, theirs = model.state_dict(), first.model.state_dict()
    own, other = flat(dataclasses.asdict(config.model)), flat(dataclasses.asdict(first.config.model))
    differing = [name for name in own if own[name] != other[name]]
    told = "; ".join(f"model.{name} is {own[name]!r} here and {other[name]!r} there" for name in differing[:5])
    unlike = [name for name in ours if name not in theirs or theirs[name].shape != ours[name].shape]
    left = [name for name in theirs if name not in ours]
    misfits = [name for name in (*unlike, *left) if not name.startswith("captioner.")]
    if misfits:
        told = told or f"the size of {misfits[0]} differs"
        raise ConfigError(f"the weights of train.init_from {origin} do not fit: {told}.")
    notes = [f"Weights are taken from {origin}, though {told}."] if told else []
    if unlike:
        notes.append(f"{origin} has no captioner of these sizes, so the captioner starts anew.")
    if extractor and first.regions.fingerprint not in ("", extractor):
        notes.append(f"{origin} learned from regions of another extractor ({first.regions.extractor}).")
    with torch.no_grad():
        for name, tensor in ours.items():
            if not (unlike and name.startswith("captioner.")):
                tensor.copy_(theirs[name])
    return notes
