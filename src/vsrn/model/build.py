"""The one place that builds a model from a config."""

from __future__ import annotations

import contextlib

import torch

from vsrn.config import Config
from vsrn.data.vocabulary import Vocabulary
from vsrn.errors import ConfigError
from vsrn.model.base import BaseModel, MatchingModel
from vsrn.model.registry import MODEL_KINDS, check_model_parts


def build_any_model(
    config: Config, vocabulary: Vocabulary, *, empty: bool = False, where: str = "the config"
) -> BaseModel:
    """A fresh model of the config's kind and sizes.

    empty  whether its tensors take no memory until `load_weights` fills them
    where  the file of the config, for messages

    Raises `ConfigError` where the config names a part that nobody registered.
    """
    check_model_parts(config.model, where)
    with torch.device("meta") if empty else contextlib.nullcontext():
        model = MODEL_KINDS.make(config.model.kind, config.model, len(vocabulary))
    if not isinstance(model, BaseModel):
        raise ConfigError(f"the factory of model.kind '{config.model.kind}' makes no vsrn.model.base.BaseModel.")
    return model


def build_model(config: Config, vocabulary: Vocabulary) -> MatchingModel:
    """A fresh model with a vector for each image and each caption, of the config's kind and sizes.

    Raises what `build_any_model` raises.
    """
    model = build_any_model(config, vocabulary)
    assert isinstance(model, MatchingModel), config.model.kind
    return model
