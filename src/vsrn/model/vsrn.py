"""VSRN (Li et al., ICCV 2019), put together of its parts.

The parts follow the paper: `ImageEncoder` (sections 3.1 to 3.3), `TextEncoder`, the matching loss and `Captioner`
(3.4). Everything that the paper ablates is a field of `ModelConfig`.
"""

from __future__ import annotations

from vsrn.config import ModelConfig
from vsrn.model.base import MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.image_encoder import ImageEncoder
from vsrn.model.registry import TEXT_ENCODERS


def build_vsrn(config: ModelConfig, vocabulary_size: int) -> MatchingModel:
    """A fresh VSRN: image encoder, text encoder and, if the config enables it, captioner."""
    image_encoder = ImageEncoder(config)
    text_encoder = TEXT_ENCODERS.make(config.text_encoder, config, vocabulary_size)
    captioner = Captioner(config.captioner, config.joint_dim, vocabulary_size) if config.captioner.enabled else None
    return MatchingModel(config, image_encoder, text_encoder, captioner)
