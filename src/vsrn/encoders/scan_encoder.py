"""SCAN at work: a split's regions and words, and the similarities of any of its images and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from typing_extensions import override

from vsrn.config import ScanConfig
from vsrn.data.splits import CaptionedImages
from vsrn.encoders.base import IMAGES_AT_ONCE, NO_CAPTIONER, Features, slices
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.torch_backend import StoredEncoder
from vsrn.errors import CheckpointError
from vsrn.metrics import Advance, EncodedSplit, FloatArray, IntArray
from vsrn.model.gru import pad_tokens
from vsrn.model.saved import StoredModel
from vsrn.model.scan import SCAN, EncodedRegions, similarities

CAPTIONS_PER_BATCH = 512
IMAGES_COMPARED_AT_ONCE = 16
# Affinities worked on at once: few enough to stay in the processor's cache from one operation to the next.
AFFINITIES_AT_ONCE = 2**19
NO_EMBEDDING = (
    'a model of kind "scan" compares words with regions and has no vector of an image; use it with `vsrn evaluate`, or'
    " to re-order what another model finds (--rerank)."
)


@dataclass(frozen=True)
class EncodedWords:
    """Words of many captions, end to end: every word once in memory.

    vectors  (all words, D) unit vectors
    starts   (num_captions,) where each caption begins
    lengths  (num_captions,) words of each
    """

    vectors: torch.Tensor
    starts: IntArray
    lengths: IntArray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, captions: IntArray | slice) -> EncodedWords:
        return EncodedWords(self.vectors, self.starts[captions], self.lengths[captions])

    def batches(self, regions: int) -> Iterator[tuple[IntArray, torch.Tensor]]:
        """Captions of equal length T, as many as go with so many regions, and their words (C, T, D)."""
        for length in np.unique(self.lengths):
            captions = np.flatnonzero(self.lengths == length)
            for part in slices(len(captions), max(1, AFFINITIES_AT_ONCE // (regions * int(length)))):
                places = self.starts[captions[part]][:, None] + np.arange(length)
                yield captions[part], self.vectors[torch.from_numpy(places).to(self.vectors.device)]


@torch.inference_mode()
def compare_sets(config: ScanConfig, regions: EncodedRegions, words: EncodedWords) -> FloatArray:
    """Regions of I images, words of C captions -> (I, C) similarities."""
    found = np.empty((len(regions.vectors), len(words)), dtype=np.float32)
    for captions, vectors in words.batches(regions.vectors.shape[0] * regions.vectors.shape[1]):
        lengths = torch.from_numpy(words.lengths[captions])
        found[:, captions] = similarities(regions.vectors, vectors, lengths, regions.mask, config).cpu()
    return found


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
    def encode_split(self, split: CaptionedImages, advance: Advance = lambda _: None) -> EncodedSplit:
        self.check_split(split)
        parts = []
        for part in slices(split.num_images, IMAGES_AT_ONCE):
            images = np.arange(part.start, part.stop)
            parts.append(self._sets_of_regions(*split.read_images(images)))
            advance(len(images))
        masks = [part.mask for part in parts if part.mask is not None]
        regions = EncodedRegions(torch.cat([part.vectors for part in parts]), torch.cat(masks) if masks else None)
        words = self._sets_of_words(split.captions, advance)
        return EncodedSplit(regions, words, partial(compare_sets, self.model.config.scan), IMAGES_COMPARED_AT_ONCE)

    @override
    def compare(self, features: FloatArray, counts: IntArray | None, captions: Sequence[str]) -> FloatArray:
        regions = self._sets_of_regions(*self._check_features(features, counts))
        return compare_sets(self.model.config.scan, regions, self._sets_of_words(captions))

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
