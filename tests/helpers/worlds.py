"""Small stores and models for tests: real files, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, ScanConfig
from vsrn.data.splits import read_captions
from vsrn.data.vocabulary import build_vocabulary
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, write_model

WORDS = ["red", "blue", "green", "tall", "small", "dog", "cat", "bird", "boat", "tree", "runs", "sleeps", "sings"]
FEATURE_DIM = 12


def make_store(folder: Path, splits: dict[str, int], *, captions_per_image: int = 2, seed: int = 7) -> Path:
    """A store whose regions say, noisily, which words its captions use."""
    generator = np.random.default_rng(seed)
    meanings = generator.normal(size=(len(WORDS), FEATURE_DIM))
    folder.mkdir(parents=True)
    for split, images in splits.items():
        features, captions = [], []
        for _ in range(images):
            said = generator.choice(len(WORDS), size=3, replace=False)
            noise = 0.1 * generator.normal(size=(5, FEATURE_DIM))
            features.append(meanings[said[generator.integers(3, size=5)]] + noise)
            for place in range(captions_per_image):
                captions.append(" ".join(WORDS[word] for word in np.roll(said, place)[: 3 - place % 2]))
        np.save(folder / f"{split}_ims.npy", np.stack(features).astype(np.float16))
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


def make_model(folder: Path, store: Path, *, seed: int = 0, **model: object) -> Path:
    """A model with random weights that fits a store."""
    torch.manual_seed(seed)
    sizes = {"joint_dim": 16, "word_dim": 8, "captioner": CaptionerConfig(enabled=False)} | model
    config = Config(
        data=DataConfig(path=str(store)),
        model=ModelConfig(feature_dim=FEATURE_DIM, **sizes),  # type: ignore[arg-type]
    )
    vocabulary = build_vocabulary(read_captions(next(store.glob("*_caps.txt"))), min_count=1)
    stored = StoredModel(config, vocabulary, build_model(config, vocabulary))
    write_model(folder, stored)
    return folder


def make_scan(folder: Path, store: Path, *, seed: int = 0, **scan: Any) -> Path:
    """The same of a SCAN."""
    return make_model(folder, store, seed=seed, kind="scan", scan=ScanConfig(**scan))
