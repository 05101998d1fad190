"""SCAN at work: a split's regions and words, and the similarities of any of its images and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vsrn.config import ScanConfig
from vsrn.data.region_store import FloatArray, IntArray
from vsrn.data.splits import CaptionedImages
from vsrn.encoders.encoded import EVERY, Advance
from vsrn.encoders.torch_backend import pick_device
from vsrn.model.saved import StoredModel
from vsrn.model.scan import SCAN, EncodedRegions, similarities
from vsrn.model.text_encoder import pad_tokens

IMAGES_PER_BATCH = 128
CAPTIONS_PER_BATCH = 512
# Affinities worked on at once: few enough to stay in the processor's cache from one operation to the next.
AFFINITIES_AT_ONCE = 2**19


@dataclass(frozen=True)
class EncodedWords:
    """Words of many captions, end to end.

    vectors  (all words, D) unit vectors
    starts   (num_captions,) where each caption begins
    lengths  (num_captions,) words of each
    """

    vectors: torch.Tensor
    starts: IntArray
    lengths: IntArray

    def of(self, captions: IntArray) -> torch.Tensor:
        """(C,) captions of equal length T -> (C, T, D)."""
        places = self.starts[captions][:, None] + np.arange(self.lengths[captions[0]])
        return self.vectors[torch.from_numpy(places).to(self.vectors.device)]


@dataclass(frozen=True)
class EncodedSets:
    """A split as sets of regions and of words. Memory: every region and every word once."""

    regions: EncodedRegions
    words: EncodedWords
    config: ScanConfig
    images_at_once: int = 16

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return len(self.regions.vectors)

    @property
    def num_captions(self) -> int:
        """How many captions there are."""
        return len(self.words.lengths)

    def only(self, images: IntArray | slice, captions: IntArray | slice) -> EncodedSets:
        """The same of these images and these captions alone, in this order."""
        words = replace(self.words, starts=self.words.starts[captions], lengths=self.words.lengths[captions])
        return replace(self, regions=_rows(self.regions, images), words=words)

    @torch.inference_mode()
    def similarities(self, images: slice = EVERY) -> FloatArray:
        """(images, num_captions) similarities of neighbouring images."""
        vectors, mask = _rows(self.regions, images)
        found = np.empty((len(vectors), self.num_captions), dtype=np.float32)
        for captions in self._batches(vectors.shape[0] * vectors.shape[1]):
            words = self.words.of(captions)
            lengths = torch.from_numpy(self.words.lengths[captions])
            found[:, captions] = similarities(vectors, words, lengths, mask, self.config).cpu()
        return found

    def _batches(self, regions: int) -> Iterator[IntArray]:
        """Captions of equal length, as many as go with so many regions."""
        for length in np.unique(self.words.lengths):
            captions = np.flatnonzero(self.words.lengths == length)
            at_once = max(1, AFFINITIES_AT_ONCE // (regions * int(length)))
            for first in range(0, len(captions), at_once):
                yield captions[first : first + at_once]


class SetEncoder:
    """Encodes splits by one SCAN on one device."""

    def __init__(self, stored: StoredModel[SCAN], device: str = "auto") -> None:
        self.stored = stored
        self.device = pick_device(device)
        self.model = stored.model.to(self.device).eval()

    def encode_split(self, split: CaptionedImages, advance: Advance = lambda _: None) -> EncodedSets:
        """Encode each image and each caption of a split once; `advance` hears of each finished batch.

        Raises `DataError` where the split's images are not what the model learned from.
        """
        self.stored.check_split(split)
        regions = self._encode_images(split, advance)
        return EncodedSets(regions, self.encode_captions(split.captions, advance), self.model.config.scan)

    def compare(self, features: FloatArray, counts: IntArray | None, captions: Sequence[str]) -> FloatArray:
        """(I, N, F) region features, (I,) real regions of each or None for all, C sentences -> (I, C) similarities."""
        regions = self.encode_regions(features, counts)
        return EncodedSets(regions, self.encode_captions(captions), self.model.config.scan).similarities()

    @torch.inference_mode()
    def encode_regions(self, features: FloatArray, counts: IntArray | None = None) -> EncodedRegions:
        """(B, N, F) region features, (B,) real regions of each or None for all."""
        real = None if counts is None else torch.from_numpy(counts).to(self.device)
        encoded: EncodedRegions = self.model.region_encoder(torch.from_numpy(features).to(self.device), real)
        return encoded

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str], advance: Advance = lambda _: None) -> EncodedWords:
        """Sentences -> their words; those of about one length are read together."""
        tokens = [np.array(self.stored.vocabulary.encode(caption)) for caption in captions]
        lengths = np.array([len(ids) for ids in tokens])
        starts = np.cumsum(lengths) - lengths
        vectors = torch.empty(int(lengths.sum()), self.model.config.joint_dim, device=self.device)
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(order), CAPTIONS_PER_BATCH):
            batch = order[first : first + CAPTIONS_PER_BATCH]
            padded, real = pad_tokens([tokens[caption] for caption in batch])
            words = self.model.word_encoder(padded.to(self.device), real)
            for caption, of_caption in zip(batch, words, strict=True):
                vectors[starts[caption] : starts[caption] + lengths[caption]] = of_caption[: lengths[caption]]
            advance(len(batch))
        return EncodedWords(vectors, starts, lengths)

    def _encode_images(self, split: CaptionedImages, advance: Advance) -> EncodedRegions:
        parts = []
        for first in range(0, split.num_images, IMAGES_PER_BATCH):
            images = np.arange(first, min(first + IMAGES_PER_BATCH, split.num_images))
            parts.append(self.encode_regions(*split.read_images(images)))
            advance(len(images))
        masks = [part.mask for part in parts if part.mask is not None]
        return EncodedRegions(torch.cat([part.vectors for part in parts]), torch.cat(masks) if masks else None)


def _rows(regions: EncodedRegions, images: IntArray | slice) -> EncodedRegions:
    at = images if isinstance(images, slice) else torch.from_numpy(images).to(regions.vectors.device)
    return EncodedRegions(regions.vectors[at], None if regions.mask is None else regions.mask[at])
