"""What every model is made of: an image encoder and a text encoder into one joint space, and a captioner.

Shapes: B matching pairs of an image and a caption, N regions, F numbers of a region, D joint size, T tokens of the
longest caption.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.captioner import Captioner
from vsrn.model.losses import SIMILARITIES

Gather = Callable[[torch.Tensor], torch.Tensor]
MatchingLoss = Callable[[torch.Tensor, float], torch.Tensor]


class EncodedImages(NamedTuple):
    """What an image encoder gives.

    embeddings        (B, D) in the joint space
    reasoned_regions  (B, N, D) what entered the aggregator, and what the captioner reads
    """

    embeddings: torch.Tensor
    reasoned_regions: torch.Tensor


class Losses(NamedTuple):
    """Both parts of the joint loss, scalars; `generation` is 0 without a captioner."""

    matching: torch.Tensor
    generation: torch.Tensor

    @property
    def joint(self) -> torch.Tensor:
        """Eq. 10: matching plus generation, weight 1."""
        return self.matching + self.generation


class BaseImageEncoder(nn.Module):
    """Base class of image encoders: (B, N, F) regions, (B,) real ones of each or None for all -> `EncodedImages`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def load_first_weights(self) -> None:
        """Take the pretrained weights that the config names, before training starts; most encoders have none."""

    def begin_epoch(self, _epoch: int) -> bool:
        """Prepare for an epoch (from 0) of training; returns whether other parameters are trained than before."""
        return False


class BaseTextEncoder(nn.Module):
    """Base class of text encoders: (B, T) token ids, (B,) real tokens of each on the CPU -> (B, D) embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def words(self) -> nn.Embedding | None:
        """(vocabulary size, word size) vectors of the words, which `data.word_vectors` can start; None without any."""
        return None


class BaseModel(nn.Module, abc.ABC):
    """A model that learns which images and captions belong together, from pairs that do."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abc.abstractmethod
    def similarity(self) -> str:
        """Name of the scale of its similarities; models of one scale can be averaged."""

    @property
    def words(self) -> nn.Embedding | None:
        """(vocabulary size, word size) vectors of the words, which `data.word_vectors` can start; None without any."""
        return None

    def load_first_weights(self) -> None:
        """Take the pretrained weights that the config names, before training starts; most models have none."""

    def begin_epoch(self, _epoch: int) -> bool:
        """Prepare for an epoch (from 0) of training; returns whether other parameters are trained than before."""
        return False

    @abc.abstractmethod
    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        counts: torch.Tensor | None,
        loss: MatchingLoss,
        gather: Gather = lambda rows: rows,
        epochs: float = math.inf,
    ) -> Losses:
        """The losses of B matching pairs.

        features  (B, N, F) regions of each pair's image, or (B, S, S, 3) uint8 its pixels
        tokens    (B, T) ids of each pair's caption, padded with <pad>
        lengths   (B,) real tokens of each caption, on the CPU
        counts    (B,) real regions of each image, or None where all are real
        loss      matching loss of (B, B) similarities after so many epochs
        gather    makes the rows of the global batch of this process's rows, where several processes train together
        epochs    epochs trained so far, for a loss that warms up; by default the warm-up is over
        """


class MatchingModel(BaseModel):
    """An image encoder and a text encoder into one joint space, and a captioner that shapes the image side.

    The text encoder is called `caption_encoder`, the name that its weights have in every saved model.
    """

    def __init__(
        self,
        config: ModelConfig,
        image_encoder: BaseImageEncoder,
        text_encoder: BaseTextEncoder,
        captioner: Captioner | None = None,
    ) -> None:
        super().__init__(config)
        self.image_encoder = image_encoder
        self.caption_encoder = text_encoder
        self.captioner = captioner

    @property
    def similarity(self) -> str:
        """How an image and a caption embedding are compared: "cosine" or "order"."""
        return self.config.similarity

    @property
    def words(self) -> nn.Embedding | None:
        """The text encoder's vectors of the words; the captioner has its own."""
        return self.caption_encoder.words

    def load_first_weights(self) -> None:
        """Take the pretrained weights that the config names for the image encoder, before training starts."""
        self.image_encoder.load_first_weights()

    def begin_epoch(self, epoch: int) -> bool:
        """Prepare for an epoch (from 0) of training; returns whether other parameters are trained than before."""
        return self.image_encoder.begin_epoch(epoch)

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        counts: torch.Tensor | None,
        loss: MatchingLoss,
        gather: Gather = lambda rows: rows,
        epochs: float = math.inf,
    ) -> Losses:
        """The losses of B matching pairs; `BaseModel.forward` says what it takes."""
        images = self.image_encoder(features, counts)
        captions = self.caption_encoder(tokens, lengths)
        similarities = SIMILARITIES[self.config.similarity](gather(images.embeddings), gather(captions))
        matching = loss(similarities, epochs)
        if self.captioner is None:
            return Losses(matching, torch.zeros_like(matching))
        generation = self.captioner.generation_loss(images.reasoned_regions, tokens, lengths, counts)
        return Losses(matching, generation)
