"""A model of a few numbers and an extractor of real photos that needs no network, for indexes made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from colour_extractor import FEATURE_DIM, Colours, make
from PIL import Image
from torch import nn

from vsrn.config import CaptionerConfig, Config, ModelConfig
from vsrn.data.region_store import StoreInfo
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.encoders.export import export_onnx
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel

__all__ = ["FEATURE_DIM", "Colours", "make"]  # for those who import them from here

WORDS = ["red", "green", "blue", "dark", "light"]
JOINT_DIM = 8


def colour_model(*, seed: int = 0, **fields: object) -> StoredModel:
    """A model with random weights that tells photos apart."""
    sizes = {"feature_dim": FEATURE_DIM, "joint_dim": JOINT_DIM, "word_dim": 4, "reasoning_layers": 1}
    config = Config(model=ModelConfig(**sizes | {"captioner": CaptionerConfig(enabled=False)} | fields))  # type: ignore[arg-type]
    vocabulary = Vocabulary([*SPECIAL_WORDS, *WORDS])
    torch.manual_seed(seed)
    model = build_model(config, vocabulary)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.2, 1)
    return StoredModel(config, vocabulary, model.eval(), StoreInfo("colours", Colours.fingerprint))


def export_colours(folder: Path, *, seed: int = 0) -> Path:
    """The same, exported."""
    export_onnx(colour_model(seed=seed), folder)
    return folder


def save_photo(path: Path, number: int) -> Path:
    """A photo that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((24, 16), Image.Resampling.NEAREST).save(path)
    return path
