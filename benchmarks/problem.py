"""The sizes that the speed claims are stated for, and random data of those sizes.

36 regions of 1,280 numbers -> 512, batches of 128, a vocabulary of 2,900 words, captions cut at 40 tokens and as long
as Flickr8K's are (mean 13.8 tokens with <start> and <end>, measured on its 35,000 captions).
"""

from __future__ import annotations

import numpy as np
import torch

from vsrn.config import CaptionerConfig, ModelConfig
from vsrn.data.vocabulary import END, START
from vsrn.metrics import FloatArray, IntArray
from vsrn.model.base import MatchingModel
from vsrn.model.gru import pad_tokens
from vsrn.model.reasoning import RegionRelationshipReasoning
from vsrn.model.vsrn import ImageEncoder, build_vsrn

REGIONS, FEATURE_DIM, JOINT_DIM, BATCH, WORDS, MAX_TOKENS = 36, 1280, 512, 128, 2900, 40


def make_model(dropout: float = 0.2) -> MatchingModel:
    """A model whose layers do something: BatchNorm scales are random, since fresh ones are zero."""
    torch.manual_seed(0)
    captioner = CaptionerConfig(hidden_dim=512, max_tokens=MAX_TOKENS, dropout=dropout)
    config = ModelConfig(feature_dim=FEATURE_DIM, joint_dim=JOINT_DIM, normalisation="flickr30k", captioner=captioner)
    model = build_vsrn(config, WORDS)
    assert isinstance(model.image_encoder, ImageEncoder)
    for layer in model.image_encoder.reasoning:
        assert isinstance(layer, RegionRelationshipReasoning)
        torch.nn.init.normal_(layer.norm.weight, std=0.3)
    return model


def make_captions(number: int, seed: int = 0) -> list[IntArray]:
    """Token ids from <start> to <end>."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.normal(13.8, 4.0, size=number).round().astype(int), 5, MAX_TOKENS)
    return [np.array([START, *generator.integers(4, WORDS, length - 2), END]) for length in lengths]


def make_features(number: int, seed: int = 0) -> torch.Tensor:
    """(number, 36, 1280) non-negative features, as those after a ReLU are."""
    return torch.rand(number, REGIONS, FEATURE_DIM, generator=torch.Generator().manual_seed(seed))


def make_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, tokens and lengths of 128 pairs, longest caption first."""
    captions = sorted(make_captions(BATCH), key=len, reverse=True)
    return make_features(BATCH), *pad_tokens(captions)


def make_embeddings(images: int, dim: int, captions_per_image: int = 5) -> tuple[FloatArray, FloatArray, IntArray]:
    """Embeddings whose inner products are exact in float32, so that any order of summation gives the same ranks.

    Numbers are multiples of 1/64 up to 8/64: a product of 1,024 of them needs 18 bits. Captions lie near their image.
    """
    generator = np.random.default_rng(0)
    image = generator.integers(-8, 9, size=(images, dim))
    owners = np.repeat(np.arange(images), captions_per_image)
    noise = generator.integers(-8, 9, size=(len(owners), dim))
    keep = generator.random((len(owners), dim)) < 0.15
    caption = np.where(keep, image[owners], noise)
    return (image / 64).astype(np.float32), (caption / 64).astype(np.float32), owners
