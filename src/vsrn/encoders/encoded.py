"""A split as one model sees it, and what can encode a split: the seam between evaluation and the kinds of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vsrn.data.region_store import FloatArray, IntArray
from vsrn.data.splits import CaptionedImages
from vsrn.metrics import Blocks, mean_blocks, rows_of_block, vector_similarities
from vsrn.model.saved import StoredModel

Advance = Callable[[int], None]
EVERY = slice(None)


class EncodedSplit(Protocol):
    """Images and captions, encoded once, whose similarities can be asked for."""

    @property
    def num_images(self) -> int:
        """How many images there are."""

    @property
    def num_captions(self) -> int:
        """How many captions there are."""

    @property
    def images_at_once(self) -> int:
        """How many images to ask for in one call."""

    def only(self, images: IntArray | slice, captions: IntArray | slice) -> EncodedSplit:
        """The same of these images and these captions alone, in this order."""

    def similarities(self, images: slice = EVERY) -> FloatArray:
        """(images, num_captions) similarities of neighbouring images."""


class SplitEncoder(Protocol):
    """A model at work on one device."""

    @property
    def stored(self) -> StoredModel[Any]:
        """The model and what belongs to it."""

    def encode_split(self, split: CaptionedImages, advance: Advance = ..., /) -> EncodedSplit:
        """Encode each image and each caption of a split once; `advance` hears of each finished batch.

        Raises `DataError` where the split's images are not what the model learned from.
        """


@dataclass(frozen=True)
class EncodedVectors:
    """Embeddings of a split: (num_images, D) and (num_captions, D) float32, compared by "cosine" or "order"."""

    images: FloatArray
    captions: FloatArray
    similarity: str = "cosine"

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return len(self.images)

    @property
    def num_captions(self) -> int:
        """How many captions there are."""
        return len(self.captions)

    @property
    def images_at_once(self) -> int:
        """As many as a block of a bounded size takes."""
        return rows_of_block(self.num_captions)

    def only(self, images: IntArray | slice, captions: IntArray | slice) -> EncodedVectors:
        """The same of these images and these captions alone, in this order."""
        return EncodedVectors(self.images[images], self.captions[captions], self.similarity)

    def similarities(self, images: slice = EVERY) -> FloatArray:
        """(images, num_captions) similarities of neighbouring images."""
        return vector_similarities(self.images[images], self.captions, self.similarity)


def encoded_blocks(encoded: Sequence[EncodedSplit], advance: Advance = lambda _: None) -> Blocks:
    """Blocks of the mean similarity of one or more models; `advance` hears of the images of each block made."""
    first = encoded[0]
    at_once = min(each.images_at_once for each in encoded)
    return mean_blocks(
        [each.similarities for each in encoded], first.num_images, first.num_captions, at_once, advance=advance
    )
