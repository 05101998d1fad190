"""VSRN whole: two encoders into one joint space, and a captioner that shapes the image side.

The parts follow the paper: `ImageEncoder` (3.1 to 3.3), `CaptionEncoder`, `loss_of` and
`Captioner` (3.4). Everything that the paper ablates is a field of `ModelConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from vsrn.config import LossConfig, ModelConfig
from vsrn.model.base import Losses, MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.image_encoder import ImageEncoder
from vsrn.model.losses import SIMILARITIES, loss_of
from vsrn.model.text_encoder import CaptionEncoder

if TYPE_CHECKING:
    from vsrn.model.vsepp import PhotoEncoder


class VSRN(MatchingModel):
    """Image encoder, caption encoder and captioner, as the config asks for them."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, photo_encoder: PhotoEncoder | None = None) -> None:
        """Fresh encoders and captioner; a photo encoder takes the place of the one for regions."""
        super().__init__()
        self.config = config
        self.image_encoder: ImageEncoder | PhotoEncoder = photo_encoder or ImageEncoder(config)
        self.caption_encoder = CaptionEncoder(config, vocabulary_size)
        self.captioner = (
            Captioner(config.captioner, config.joint_dim, vocabulary_size) if config.captioner.enabled else None
        )

    @property
    def similarity(self) -> str:
        """How an image and a caption embedding are compared: "cosine" or "order"."""
        return self.config.similarity

    @property
    def words(self) -> nn.Embedding:
        """The caption encoder's; the captioner has its own."""
        return self.caption_encoder.embedding

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        counts: torch.Tensor | None,
        loss: LossConfig,
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
        epochs: float = math.inf,
    ) -> Losses:
        """The losses of B matching pairs, as `MatchingModel.forward` takes them."""
        images = self.image_encoder(features, counts)
        captions = self.caption_encoder(tokens, lengths)
        similarities = SIMILARITIES[self.config.similarity](gather(images.embeddings), gather(captions))
        matching = loss_of(similarities, loss, epochs)
        if self.captioner is None:
            return Losses(matching, torch.zeros_like(matching))
        generation = self.captioner.generation_loss(images.reasoned_regions, tokens, lengths, counts)
        return Losses(matching, generation)
