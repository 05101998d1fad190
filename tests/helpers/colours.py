"""A model of a few numbers and an extractor of real photos that needs no network, for indexes made in a moment."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from vsrn.config import CaptionerConfig, Config, ModelConfig
from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames, Regions
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.encoders.export import export_onnx
from vsrn.extractors.base import ExtractorFiles, Prepared, register_extractor
from vsrn.metrics import FloatArray
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel

WORDS = ["red", "green", "blue", "dark", "light"]
JOINT_DIM, FEATURE_DIM = 8, 6


class Colours:
    """Four quarters of a photo, each by the mean and the spread of its colours."""

    names = RegionNames()
    name, num_regions, feature_dim, has_scores, photo_size = "colours", 4, FEATURE_DIM, False, 16
    files = ExtractorFiles()
    fingerprint = hashlib.sha256(b"colours").hexdigest()
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]], np.float32)

    def prepare(self, photo: Image.Image) -> Prepared:
        return np.asarray(photo.resize((16, 16)), np.float32) / 255

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        return [Regions(self.features(np.asarray(photo)), self.boxes) for photo in prepared]

    def features(self, photo: FloatArray) -> FloatArray:
        quarters = [photo[top : top + 8, left : left + 8].reshape(-1, 3) for top in (0, 8) for left in (0, 8)]
        return np.stack([np.concatenate([q.mean(axis=0), q.std(axis=0)]) for q in quarters]).astype(np.float32)


def make(argument: str, files: ExtractorFiles) -> Colours:
    """As `vsrn.extractors.base` calls it; a file of weights may be named, and is not needed."""
    assert (argument, files.classes, files.attributes) == ("", None, None)
    return Colours()


# Whoever imports this module, may it be in a test or in a program of one, can name the extractor.
register_extractor("colours", make)


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
