"""VSE++ (Faghri et al., BMVC 2018): a photo, or the mean of precomputed vectors, to one embedding."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.base import BaseImageEncoder, EncodedImages, MatchingModel
from vsrn.model.gru import at_least_float32, l2_normalise
from vsrn.model.image_encoder import ImageEncoder
from vsrn.model.image_network import ImageNetwork, load_network_weights
from vsrn.model.registry import TEXT_ENCODERS


class PhotoEncoder(BaseImageEncoder):
    """Network -> unit length -> projection -> unit length (section 3.1 of the paper).

    The network is frozen, in evaluation mode and without a gradient, until `fine_tune(True)`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.network = ImageNetwork(config.network.name)
        self.projection = nn.Linear(self.network.feature_dim, config.joint_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.fine_tune(False)

    def load_first_weights(self) -> None:
        """Give the network the weights that the config names.

        Raises `ConfigError` where it names none, and `CheckpointError` where they do not fit.
        """
        load_network_weights(self.network, self.config.network)

    def begin_epoch(self, epoch: int) -> bool:
        """Freeze or unfreeze the network for an epoch (from 0), as the config says; returns whether that changes it."""
        after = self.config.network.fine_tune_after
        return self.fine_tune(after is not None and epoch >= after)

    def fine_tune(self, trains: bool) -> bool:
        """Unfreeze the network, or freeze it; returns whether that changes it."""
        changes = any(parameter.requires_grad != trains for parameter in self.network.parameters())
        self.network.requires_grad_(trains)
        self.network_trains = trains
        self.network.train(self.training and trains)
        return changes

    def train(self, mode: bool = True) -> PhotoEncoder:
        """Set training or evaluation mode; a frozen network stays in evaluation mode."""
        super().train(mode)
        self.network.train(mode and self.network_trains)
        return self

    def forward(self, photos: torch.Tensor, _counts: torch.Tensor | None = None) -> EncodedImages:
        """(B, S, S, 3) uint8 RGB -> `EncodedImages` with one region, the whole photo."""
        with torch.set_grad_enabled(self.network_trains and torch.is_grad_enabled()):
            features = l2_normalise(self.network(photos))
        regions = at_least_float32(self.projection(features.to(self.projection.weight.dtype)))
        embeddings = l2_normalise(regions) if self.config.image_norm else regions
        return EncodedImages(embeddings.abs() if self.config.absolute else embeddings, regions[:, None])


def build_vsepp(config: ModelConfig, vocabulary_size: int) -> MatchingModel:
    """A fresh VSE++: photo encoder, or VSRN's image encoder without reasoning for vectors, and text encoder."""
    image_encoder = PhotoEncoder(config) if config.network.name else ImageEncoder(_without_reasoning(config))
    return MatchingModel(config, image_encoder, TEXT_ENCODERS.make(config.text_encoder, config, vocabulary_size))


def _without_reasoning(config: ModelConfig) -> ModelConfig:
    """The settings of an image encoder that is projection, mean and unit length."""
    return dataclasses.replace(config, reasoning_layers=0, aggregator="mean", normalisation="none")
