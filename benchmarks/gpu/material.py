"""Data and models for the measurements, made in seconds: random, seeded, of the paper's sizes or of a test's.

B images or captions, N regions of an image, F numbers per region.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsrn.config import CaptionerConfig, Config, read_config
from vsrn.configs import find_config
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.metrics import IntArray
from vsrn.model.reasoning import RegionRelationshipReasoning
from vsrn.training.train import changed

CAPTIONS_PER_IMAGE = 5
# Bytes of the numbers from 0 to just below 1 in float16, which are as dense as those after a ReLU.
BELOW_ONE = 0x3C00


@dataclass(frozen=True)
class Sizes:
    """What is measured: the sizes of the data, and those that a model's config takes.

    images      of the training split; captions are five an image
    validation  images of the validation split
    words       of the vocabulary, with its four special ones
    model       fields of the config that make the model smaller than its packaged config says
    """

    images: int = 3000
    validation: int = 50
    regions: int = 36
    feature_dim: int = 2048
    words: int = 8481
    batch: int = 128
    model: dict[str, Any] = dataclasses.field(default_factory=dict)


PAPER = Sizes()
SMALL = Sizes(
    images=40,
    validation=6,
    regions=5,
    feature_dim=16,
    words=60,
    batch=16,
    model={"model.joint_dim": 16, "model.word_dim": 8},
)
SMALL_CAPTIONER = {"model.captioner.hidden_dim": 8, "model.captioner.word_dim": 8}
# Words of a caption in Flickr30K and in COCO: mean, standard deviation, fewest, most.
FLICKR30K_WORDS, COCO_WORDS = (12.4, 5.0, 3, 60), (10.5, 2.4, 7, 50)
# Training images: 29,000 of Flickr30K and 113,287 of COCO, with five captions each.
FLICKR30K_CAPTIONS, COCO_CAPTIONS = 29_000 * CAPTIONS_PER_IMAGE, 113_287 * CAPTIONS_PER_IMAGE


def write_store(folder: Path, sizes: Sizes, lengths: tuple[float, float, int, int] = FLICKR30K_WORDS) -> Path:
    """A region store of random features with captions of random words, and vocabulary.json beside it."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    vocabulary = make_vocabulary(sizes.words)
    (folder / "vocabulary.json").write_bytes(vocabulary.to_json())
    for split, images in (("train", sizes.images), ("dev", sizes.validation)):
        shape = (images, sizes.regions, sizes.feature_dim)
        features = np.lib.format.open_memmap(folder / f"{split}_ims.npy", mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, images, 256):
            part = features[start : start + 256]
            part[:] = generator.integers(0, BELOW_ONE, part.shape, dtype=np.uint16).view(np.float16)
        features.flush()
        captions = make_captions(CAPTIONS_PER_IMAGE * images, vocabulary, lengths, generator)
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder


def write_learnable_store(folder: Path, images: int, regions: int, feature_dim: int) -> Path:
    """A store whose regions say, noisily, which words its captions use, so that there is something to learn."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    vocabulary = make_vocabulary(64)
    (folder / "vocabulary.json").write_bytes(vocabulary.to_json())
    meanings = generator.random((60, feature_dim), dtype=np.float32)
    for split, number in (("train", images), ("dev", images // 8)):
        said = np.stack([generator.choice(60, size=6, replace=False) for _ in range(number)])
        chosen = np.take_along_axis(said, generator.integers(0, 6, (number, regions)), axis=1)
        noise = 0.1 * generator.random((number, regions, feature_dim), dtype=np.float32)
        np.save(folder / f"{split}_ims.npy", (meanings[chosen] + noise).astype(np.float16))
        captions = [
            " ".join(f"w{word}" for word in generator.permutation(words)[: generator.integers(3, 7)])
            for words in said
            for _ in range(CAPTIONS_PER_IMAGE)
        ]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder


def make_vocabulary(words: int) -> Vocabulary:
    """So many words, the special ones with them."""
    return Vocabulary([*SPECIAL_WORDS, *(f"w{number}" for number in range(words - len(SPECIAL_WORDS)))])


def make_captions(
    number: int, vocabulary: Vocabulary, lengths: tuple[float, float, int, int], generator: np.random.Generator
) -> list[str]:
    """Captions whose lengths have a gamma distribution, and whose words are the more frequent the lower their id."""
    counts = caption_words(number, lengths, generator)
    words = len(vocabulary) - len(SPECIAL_WORDS)
    drawn = (words * generator.random(int(counts.sum())) ** 3).astype(np.int64)
    return [" ".join(f"w{word}" for word in part) for part in np.split(drawn, np.cumsum(counts)[:-1])]


def caption_words(number: int, lengths: tuple[float, float, int, int], generator: np.random.Generator) -> IntArray:
    """(number,) words of each caption: gamma-distributed with this mean and deviation, and between these limits."""
    mean, deviation, fewest, most = lengths
    drawn = generator.gamma((mean / deviation) ** 2, deviation**2 / mean, number)
    return np.clip(np.rint(drawn), fewest, most).astype(np.int64)


def make_features(images: int, sizes: Sizes, seed: int = 2) -> np.ndarray[Any, np.dtype[np.float16]]:
    """(images, N, F) float16 features below 1."""
    shape = (images, sizes.regions, sizes.feature_dim)
    generator = np.random.default_rng(seed)
    return generator.integers(0, BELOW_ONE, shape, dtype=np.uint16).view(np.float16)


def make_config(name: str, store: Path, sizes: Sizes, device: torch.device, **fields: Any) -> Config:
    """A packaged config for a store, with the sizes of the data; it trains without an end and never validates.

    fields  of the config to change, "__" for "."
    """
    config = read_config(find_config(name))
    settings: dict[str, Any] = {
        "data.path": str(store),
        "data.vocabulary": str(store / "vocabulary.json"),
        "train.device": str(device),
        "train.batch_size": sizes.batch,
        "train.epochs": 10**6,
        "train.validate_every": 10**9,
        "train.loggers": [],
        **sizes.model,
    }
    if sizes.model and config.model.kind == "vsrn":
        settings |= SMALL_CAPTIONER
    return changed(config, settings | {field.replace("__", "."): value for field, value in fields.items()})


def make_it_reason(model: torch.nn.Module) -> None:
    """Give the reasoning layers scales that are not 0, as trained ones are; a fresh layer changes nothing."""
    for layer in model.modules():
        if isinstance(layer, RegionRelationshipReasoning):
            torch.nn.init.normal_(layer.norm.weight, std=0.3)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """A context in which float32 products are float32: without TF32, which cuDNN takes where it is not told."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def without_captioner(**fields: Any) -> dict[str, Any]:
    """Fields for `make_config` that leave the captioner out."""
    return {"model__captioner__enabled": False, **fields}


def captioner_of(cell: str, *, bidirectional: bool, hidden_dim: int) -> CaptionerConfig:
    """A captioner without dropout."""
    sizes: dict[str, Any] = {"cell": cell, "hidden_dim": hidden_dim, "word_dim": hidden_dim}
    return CaptionerConfig(**sizes, bidirectional=bidirectional, dropout=0.0)
