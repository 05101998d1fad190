"""SCAN at work: a split's regions and words, and the similarities of any of its images and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import torch
from typing_extensions import override

from vsrn.config import ScanConfig
from vsrn.data.region_store import FloatArray, IntArray
from vsrn.data.splits import CaptionedImages
from vsrn.encoders.base import IMAGES_AT_ONCE, NO_CAPTIONER, Features, slices
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.encoded import EVERY, Advance
from vsrn.encoders.torch_backend import StoredEncoder
from vsrn.errors import CheckpointError
from vsrn.model.gru import pad_tokens
from vsrn.model.saved import StoredModel
from vsrn.model.scan import SCAN, EncodedRegions, similarities

CAPTIONS_PER_BATCH = 512
# Affinities worked on at once: few enough to stay in the processor's cache from one operation to the next.
AFFINITIES_AT_ONCE = 2**19
NO_EMBEDDING = (
    'a model of kind "scan" compares words with regions and has no vector of an image; use it with `vsrn evaluate`, or'
    " to re-order what another model finds (--rerank)."
)


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
        """These images and these captions alone, in this order."""
        words = replace(self.words, starts=self.words.starts[captions], lengths=self.words.lengths[captions])
        return replace(self, regions=_rows(self.regions, images), words=words)

    @torch.inference_mode()
    def similarities(self, images: slice = EVERY) -> FloatArray:
        """(images, num_captions) similarities of a range of images with all captions."""
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


class ScanEncoder(StoredEncoder):
    """An `Encoder` that runs a SCAN in torch: it compares images with captions, and has no embedding of either."""

    def __init__(self, stored: StoredModel[SCAN], device: str = "auto") -> None:
        """Move a SCAN to a device, in evaluation mode. Raises `ConfigError` where there is no such device."""
        super().__init__(stored, device)
        self.model = stored.model

    @property
    @override
    def has_captioner(self) -> bool:
        return False

    @property
    @override
    def caption_writer(self) -> CaptionWriter:
        raise CheckpointError(NO_CAPTIONER)

    @override
    def encode_split(self, split: CaptionedImages, advance: Advance = lambda _: None) -> EncodedSets:
        self.check_split(split)
        parts = []
        for part in slices(split.num_images, IMAGES_AT_ONCE):
            images = np.arange(part.start, part.stop)
            parts.append(self._sets_of_regions(*split.read_images(images)))
            advance(len(images))
        masks = [part.mask for part in parts if part.mask is not None]
        regions = EncodedRegions(torch.cat([part.vectors for part in parts]), torch.cat(masks) if masks else None)
        return EncodedSets(regions, self._sets_of_words(split.captions, advance), self.model.config.scan)

    @override
    def compare(self, features: FloatArray, counts: IntArray | None, captions: Sequence[str]) -> FloatArray:
        regions = self._sets_of_regions(*self._check_features(features, counts))
        return EncodedSets(regions, self._sets_of_words(captions), self.model.config.scan).similarities()

    def _no_embedding(self, *_: object, **__: object) -> NoReturn:
        raise CheckpointError(NO_EMBEDDING)

    _encode_tokens = _encode_regions = _reasoned_regions = _no_embedding

    @torch.inference_mode()
    def _sets_of_regions(self, features: Features, counts: IntArray | None = None) -> EncodedRegions:
        """(B, N, F) region features, (B,) real regions of each or None for all -> the vectors of each region."""
        real = None if counts is None else torch.from_numpy(counts).to(self.device)
        encoded: EncodedRegions = self.model.region_encoder(torch.from_numpy(features).to(self.device), real)
        return encoded

    @torch.inference_mode()
    def _sets_of_words(self, captions: Sequence[str], advance: Advance = lambda _: None) -> EncodedWords:
        """Sentences -> the vectors of their words; those of about one length are read together."""
        tokens = [np.array(self.vocabulary.encode(caption)) for caption in captions]
        lengths = np.array([len(ids) for ids in tokens])
        starts = np.cumsum(lengths) - lengths
        vectors = torch.empty(int(lengths.sum()), self.model.config.joint_dim, device=self.device)
        order = np.argsort(lengths, kind="stable")
        for part in slices(len(order), CAPTIONS_PER_BATCH):
            batch = order[part]
            padded, real = pad_tokens([tokens[caption] for caption in batch])
            words = self.model.word_encoder(padded.to(self.device), real)
            for caption, of_caption in zip(batch, words, strict=True):
                vectors[starts[caption] : starts[caption] + lengths[caption]] = of_caption[: lengths[caption]]
            advance(len(batch))
        return EncodedWords(vectors, starts, lengths)


def _rows(regions: EncodedRegions, images: IntArray | slice) -> EncodedRegions:
    at = images if isinstance(images, slice) else torch.from_numpy(images).to(regions.vectors.device)
    return EncodedRegions(regions.vectors[at], None if regions.mask is None else regions.mask[at])
