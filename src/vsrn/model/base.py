"""Base classes of models and of their image and text encoders.

Shapes: B matching pairs of image and caption, N regions of F numbers, D joint size, T tokens of the longest caption.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import torch
from torch import nn

from vsrn.config import ModelConfig
from vsrn.model.captioner import Captioner
from vsrn.model.gru import at_least_float32, dtype_of, l2_normalise, read_sequences
from vsrn.model.losses import SIMILARITIES, Epochs

Gather = Callable[[torch.Tensor], torch.Tensor]
MatchingLoss = Callable[[torch.Tensor, Epochs], torch.Tensor]


class Batch(NamedTuple):
    """B matching pairs of an image and a caption.

    features  (B, N, F) as stored, float16 or float32; or (B, S, S, 3) uint8 pixels
    tokens    (B, T) ids, padded with <pad>
    lengths   (B,) real tokens of each caption, on the CPU; or where the tokens are, for a model that takes them there
    counts    (B,) real regions of each image, or None where all are real
    images    (B,) number of each caption's image in its split; None where nobody asks which captions share one
    """

    features: torch.Tensor
    tokens: torch.Tensor
    lengths: torch.Tensor
    counts: torch.Tensor | None = None
    images: torch.Tensor | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with every tensor changed."""
        counts, images = (None if part is None else change(part) for part in (self.counts, self.images))
        return Batch(change(self.features), change(self.tokens), change(self.lengths), counts, images)


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


class BaseEncoder(nn.Module):
    """What encoders of images and of captions share: a config, first weights, and what an epoch begins with."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def load_first_weights(self) -> None:
        """Take the pretrained weights that the config names, before training starts; most encoders have none."""

    def begin_epoch(self, _epoch: int) -> bool:
        """Prepare for an epoch (from 0) of training; returns whether other parameters are trained than before."""
        return False

    def as_embeddings(self, pooled: torch.Tensor, *, unit_length: bool = True) -> torch.Tensor:
        """(B, D) one vector an image or caption -> (B, D) embeddings in float32 or wider, as the config says."""
        embeddings = l2_normalise(pooled) if unit_length else at_least_float32(pooled)
        return embeddings.abs() if self.config.absolute else embeddings


class BaseImageEncoder(BaseEncoder):
    """Base class of image encoders: (B, N, F) regions, (B,) real ones of each or None for all -> `EncodedImages`."""


class WithNetwork(BaseEncoder):
    """An encoder with a pretrained `network`, which is in evaluation mode and without a gradient while it is frozen.

    trains_from  the epoch, from 0, before which it is frozen; None where it always is
    """

    network: nn.Module
    trains_from: int | None
    network_trains = True

    def begin_epoch(self, epoch: int) -> bool:
        """Freeze or unfreeze the network for an epoch (from 0) of training; returns whether that changes it."""
        trains = self.trains_from is not None and epoch >= self.trains_from
        changes = any(parameter.requires_grad != trains for parameter in self.network.parameters())
        self.network.requires_grad_(trains)
        self.network_trains = trains
        self.network.train(self.training and trains)
        return changes

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen network stays in evaluation mode."""
        super().train(mode)
        self.network.train(mode and self.network_trains)
        return self


class BaseTextEncoder(BaseEncoder):
    """Base class of text encoders: (B, T) token ids, (B,) real tokens of each on the CPU -> (B, D) embeddings.

    takes_lengths_anywhere  whether the lengths may also be where the tokens are, so that no shape depends on them
    """

    takes_lengths_anywhere: ClassVar[bool] = False

    @property
    def words(self) -> nn.Embedding | None:
        """(vocabulary size, word size) vectors of the words, which `data.word_vectors` can start; None without any."""
        return None


class WordGRU(BaseTextEncoder):
    """Base class of text encoders with a word embedding and a GRU, whose directions are averaged."""

    takes_lengths_anywhere = True

    def __init__(self, config: ModelConfig, vocabulary_size: int, *, bidirectional: bool) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(vocabulary_size, config.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        sizes = config.word_dim, config.joint_dim, config.caption_layers
        self.gru = nn.GRU(*sizes, batch_first=True, bidirectional=bidirectional)

    @property
    def words(self) -> nn.Embedding:
        """(vocabulary size, word size) vectors of the words."""
        return self.embedding

    def states(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each -> (B, T, D or 2D) the GRU's outputs, 0 after the last token."""
        return read_sequences(self.gru, self.embedding(tokens), lengths)

    def mean_of_directions(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, D or 2D) the GRU's outputs -> (B, T, D)."""
        if not self.gru.bidirectional:
            return states
        forward, backward = at_least_float32(states).chunk(2, dim=-1)
        return (forward + backward) / 2


class BaseModel(nn.Module, abc.ABC):
    """A model that learns which images and captions belong together, from pairs that do."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def similarity(self) -> str:
        """Name of the scale of its similarities, such as "cosine" or "order"; models of one scale can be averaged."""
        return self.config.similarity

    @property
    def encoders(self) -> list[BaseEncoder]:
        """The parts that read images and captions, which may have first weights and begin epochs."""
        return [part for part in self.children() if isinstance(part, BaseEncoder)]

    @property
    def takes_lengths_anywhere(self) -> bool:
        """Whether a batch's lengths may be on a GPU too, which a step needs to be recorded there."""
        return any(getattr(part, "takes_lengths_anywhere", False) for part in self.children())

    @property
    def words(self) -> nn.Embedding | None:
        """The vectors of words of the part that reads captions; None without any."""
        return next((part.words for part in self.children() if isinstance(part, BaseTextEncoder)), None)

    @abc.abstractmethod
    def forward(
        self, batch: Batch, loss: MatchingLoss, gather: Gather = lambda rows: rows, epochs: Epochs = math.inf
    ) -> Losses:
        """The losses of B matching pairs.

        loss    matching loss of (B, B) similarities after so many epochs
        gather  makes the rows of the global batch of this process's rows, where several processes train together
        epochs  trained so far, for a loss that warms up; by default the warm-up is over
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

    def forward(
        self, batch: Batch, loss: MatchingLoss, gather: Gather = lambda rows: rows, epochs: Epochs = math.inf
    ) -> Losses:
        """The matching loss of B matching pairs, and the generation loss, 0 without a captioner.

        loss    matching loss of (B, B) similarities after so many epochs
        gather  rows of this process -> rows of the global batch, where several processes train together
        epochs  trained so far, for a loss that warms up; by default the warm-up is over
        """
        features, tokens, lengths, counts, _ = batch
        images = self.image_encoder(features, counts)
        captions = self.caption_encoder(tokens, lengths)
        similarities = SIMILARITIES[self.config.similarity](gather(images.embeddings), gather(captions))
        matching = loss(similarities, epochs)
        if self.captioner is None:
            return Losses(matching, torch.zeros_like(matching))
        generation = self.captioner.generation_loss(images.reasoned_regions, tokens, lengths, counts)
        return Losses(matching, generation)


def make_projection(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier's weights and no bias at first, as the 2019 code made it."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def project(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """(..., F) features of any precision -> (..., D) in float32 or wider, also under bf16 autocast."""
    return at_least_float32(layer(features.to(dtype_of(layer))))
