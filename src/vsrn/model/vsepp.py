"""VSE++ (Faghri et al., *VSE++: Improving Visual-Semantic Embeddings with Hard Negatives*, BMVC 2018).

VSRN without what VSRN is about: the image is one vector from a network that reads the photo, or that somebody
computed before, projected into the joint space. Caption encoder and matching loss are the same.
"""

from __future__ import annotations

import dataclasses

from vsrn.config import CaptionerConfig, ModelConfig
from vsrn.model.matching import MatchingModel
from vsrn.model.network import load_network_weights
from vsrn.model.photo_encoder import PhotoEncoder
from vsrn.model.vsrn import VSRN


class VSEPP(VSRN):
    """Photo encoder, or the mean of precomputed vectors, and caption encoder."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        photo_encoder = PhotoEncoder(config) if config.network.name else None
        super().__init__(_without_reasoning(config), vocabulary_size, photo_encoder)
        self.config = config

    def begin_epoch(self, epoch: int) -> bool:
        """Set the image network free, or keep it still, as the config says; whether that is a change."""
        after = self.config.network.fine_tune_after
        encoder = self.image_encoder
        return isinstance(encoder, PhotoEncoder) and encoder.fine_tune(after is not None and epoch >= after)


def start_network(model: MatchingModel) -> None:
    """Give a fresh model's image network the weights that its config names.

    Raises `ConfigError` where it names none, and `CheckpointError` where they do not fit.
    """
    if isinstance(model, VSEPP) and isinstance(model.image_encoder, PhotoEncoder):
        load_network_weights(model.image_encoder.network, model.config.network)


def _without_reasoning(config: ModelConfig) -> ModelConfig:
    """The paper's baseline on what it reads: projection, mean, unit length."""
    return dataclasses.replace(
        config,
        reasoning_layers=0,
        aggregator="mean",
        normalisation="none",
        captioner=CaptionerConfig(enabled=False),
    )
