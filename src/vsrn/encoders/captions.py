"""What every model that writes captions offers, whether torch or onnxruntime runs its encoders; itself torch-free.

model = vsrn.load("flickr8k-small")
model.caption("beach.jpg")                          # "two dogs play on the beach."
model.caption_images(["beach.jpg", "snow.jpg"])     # one sentence each
model.caption_regions(features)                     # the same from regions (B, N, F)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vsrn.config import RegionOrder
from vsrn.data.region_store import FloatArray, IntArray
from vsrn.data.splits import at_places, reading_places

if TYPE_CHECKING:
    from vsrn.encoders.captioning import CaptionWriter

# (B, N, F) features, and (B,) real regions of each or None for all.
RegionBatch = tuple[FloatArray, IntArray | None]

CAPTIONER_FILE = "captioner.safetensors"
DEFAULT_BEAM = 5
# Reasoned regions take much more room than captions.
IMAGES_AT_ONCE = 128
NO_CAPTIONER = (
    "this model has no captioner, so it cannot write captions; use one that was trained with model.captioner.enabled."
)


@dataclass(frozen=True)
class WrittenCaption:
    """A sentence that a model wrote.

    text   its words and punctuation marks, as one writes them
    score  mean log-probability of its words and of its end; 0 would be certainty
    """

    text: str
    score: float


class WritesCaptions(ABC):
    """The part of an encoder that writes a sentence for an image, where its model has a captioner."""

    @property
    @abstractmethod
    def caption_writer(self) -> CaptionWriter:
        """The captioner at work. Raises `CheckpointError` where the model has none."""

    @abstractmethod
    def photo_regions(self, photos: Sequence[Path | str]) -> Iterator[RegionBatch]:
        """Photo files -> features and counts, a batch at a time. Raises what `encode_images` raises."""

    @property
    @abstractmethod
    def region_order(self) -> RegionOrder:
        """The order in which the model reads an image's regions."""

    @abstractmethod
    def reasoned_regions(self, features: FloatArray, counts: IntArray | None = None) -> tuple[FloatArray, FloatArray]:
        """(B, N, F) features, (B,) counts -> (B, D) embeddings and (B, N, D) float32 reasoned ones, place by place."""

    def caption(self, photo: Path | str, beam: int = DEFAULT_BEAM) -> str:
        """A sentence for one photo file; see `caption_images`."""
        return self.caption_images([photo], beam)[0]

    def caption_images(self, photos: Sequence[Path | str], beam: int = DEFAULT_BEAM) -> list[str]:
        """One sentence for each photo file, with the extractor that the model's training data was made by.

        beam  partial captions kept at every step; 1 is greedy

        Raises `PhotoError` where a photo cannot be read, `CheckpointError` where the model has no captioner, and
        `DataError` where the extractor here is not the one that the model learned from.
        """
        return [caption.text for caption in self.write_photo_captions(photos, beam)]

    def caption_regions(
        self, features: FloatArray, counts: IntArray | None = None, beam: int = DEFAULT_BEAM
    ) -> list[str]:
        """(B, N, F) region features, (B,) real regions of each or None for all -> one sentence for each image."""
        return [caption.text for caption in self.write_captions(features, counts, beam)]

    def write_captions(
        self, features: FloatArray, counts: IntArray | None = None, beam: int = DEFAULT_BEAM
    ) -> list[WrittenCaption]:
        """As `caption_regions`, with how sure the model is of each."""
        writer, written = self.caption_writer, []
        for first in range(0, len(features), IMAGES_AT_ONCE):
            batch = slice(first, first + IMAGES_AT_ONCE)
            real = None if counts is None else counts[batch]
            reasoned = self.reasoned_regions(features[batch], real)[1]
            # The captioner's encoder reads the regions one after the other, too.
            places = reading_places(features[batch], real, self.region_order)
            written += writer.write(at_places(reasoned, places), real, beam)
        return written

    def write_photo_captions(self, photos: Sequence[Path | str], beam: int = DEFAULT_BEAM) -> Iterator[WrittenCaption]:
        """As `caption_images`, one after the other, with how sure the model is of each."""
        # What is missing is said before any photo is read.
        _ = self.caption_writer
        for features, counts in self.photo_regions(photos):
            yield from self.write_captions(features, counts, beam)
