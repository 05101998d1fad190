"""Pixels to one embedding a photo: the image side of VSE++."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from vsrn.config import CaptionerConfig, ModelConfig
from vsrn.model.base import MatchingModel
from vsrn.model.gru import l2_normalise, widen
from vsrn.model.image_encoder import EncodedImages
from vsrn.model.image_network import ImageNetwork, load_network_weights
from vsrn.model.vsrn import VSRN


class PhotoEncoder(nn.Module):
    """Network -> unit length -> projection -> unit length (Faghri et al. 2018, section 3.1).

    The network stands still, in evaluation mode and without a gradient, until `fine_tune` sets it free.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = ImageNetwork(config.network.name)
        self.projection = nn.Linear(self.network.feature_dim, config.joint_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.fine_tune(False)

    def fine_tune(self, learns: bool) -> bool:
        """Let the network learn, or keep it as it is; says whether that is a change."""
        changes = any(parameter.requires_grad != learns for parameter in self.network.parameters())
        self.network.requires_grad_(learns)
        self.learns = learns
        self.network.train(self.training and learns)
        return changes

    def train(self, mode: bool = True) -> PhotoEncoder:
        """Training or evaluation mode, but for a network that stands still."""
        super().train(mode)
        self.network.train(mode and self.learns)
        return self

    def forward(self, photos: torch.Tensor, _counts: torch.Tensor | None = None) -> EncodedImages:
        """(B, S, S, 3) uint8 RGB -> `EncodedImages` with one region, the whole photo."""
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            features = l2_normalise(self.network(photos))
        regions = widen(self.projection(features.to(self.projection.weight.dtype)))
        embeddings = l2_normalise(regions) if self.config.image_norm else regions
        return EncodedImages(embeddings.abs() if self.config.absolute else embeddings, regions[:, None])


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
