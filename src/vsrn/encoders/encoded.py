"""A split as one model encodes it: what evaluation asks, whether a model embeds images or compares sets of regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vsrn.metrics import Blocks, FloatArray, IntArray, mean_blocks, rows_of_block, vector_similarities

# Called with how many were done since the last call.
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
        """How many images to ask for in one call of `similarities`."""

    def only(self, images: IntArray | slice, captions: IntArray | slice) -> EncodedSplit:
        """These images and these captions alone, in this order."""

    def similarities(self, images: slice = EVERY) -> FloatArray:
        """(images, num_captions) similarities of a range of images with all captions."""


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
        """These images and these captions alone, in this order."""
        return EncodedVectors(self.images[images], self.captions[captions], self.similarity)

    def similarities(self, images: slice = EVERY) -> FloatArray:
        """(images, num_captions) similarities of a range of images with all captions."""
        return vector_similarities(self.images[images], self.captions, self.similarity)


def encoded_blocks(encoded: Sequence[EncodedSplit], advance: Advance = lambda _: None) -> Blocks:
    """Blocks of the mean similarity of one or more models.

    advance  called with the number of images of each finished block
    """
    first = encoded[0]
    at_once = min(each.images_at_once for each in encoded)
    return mean_blocks(
        [each.similarities for each in encoded], first.num_images, first.num_captions, at_once, advance=advance
    )
