"""Trained models at work in torch: one that has embeddings, and SCAN, which compares sets of regions and words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from typing_extensions import override

from vsrn.config import ScanConfig
from vsrn.data.regions import RegionNames
from vsrn.data.splits import CaptionedImages
from vsrn.devices import pick_device
from vsrn.encoders.base import IMAGES_AT_ONCE, NO_CAPTIONER, Encoder, Features, Precision, slices
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.folding import fold, last_states
from vsrn.errors import CheckpointError
from vsrn.metrics import Advance, EncodedSplit, FloatArray, IntArray
from vsrn.model.base import BaseTextEncoder, MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.gru import pad_tokens
from vsrn.model.saved import StoredModel, model_fingerprint, read_model
from vsrn.model.scan import SCAN, EncodedRegions, similarities
from vsrn.model.vsrn import TextEncoder

CAPTIONS_PER_BATCH = 4096
# Fewer where the GRU's states of all words of a caption are kept.
PADDED_CAPTIONS_PER_BATCH = 256
SCAN_CAPTIONS_PER_BATCH = 512
IMAGES_COMPARED_AT_ONCE = 16
# Affinities worked on at once: few enough to stay in the processor's cache from one operation to the next.
AFFINITIES_AT_ONCE = 2**19
NO_EMBEDDING = (
    'a model of kind "scan" compares words with regions and has no vector of an image; use it with `vsrn evaluate`, or'
    " to re-order what another model finds (--rerank)."
)


def encoder_of(stored: StoredModel[Any], device: str = "auto", precision: Precision = "fp32") -> Encoder:
    """What runs a model that is already read; a SCAN is always run in "fp32".

    Raises `ConfigError` where the device is not there, and `CheckpointError` where a registered kind of model has no
    embeddings.
    """
    if isinstance(stored.model, SCAN):
        return ScanEncoder(stored, device)
    if not isinstance(stored.model, MatchingModel):
        raise CheckpointError(
            f'a model of kind "{stored.config.model.kind}" has no embeddings; make it a vsrn.model.base.MatchingModel.'
        )
    return TorchEncoder(stored, device, precision)


class StoredEncoder(Encoder):
    """What `TorchEncoder` and `ScanEncoder` share: a model that was read into torch, on one device."""

    def __init__(self, stored: StoredModel[Any], device: str = "auto") -> None:
        """Move a model to a device, in evaluation mode. Raises `ConfigError` where there is no such device."""
        self._captioner: Captioner | None = getattr(stored.model, "captioner", None)
        able = self._captioner is not None
        super().__init__(stored.config, stored.vocabulary, str(pick_device(device)), stored.regions, has_captioner=able)
        self.stored = stored
        stored.model.to(self.device).eval()

    @property
    @override
    def similarity(self) -> str:
        return str(self.stored.model.similarity)

    @cached_property
    @override
    def fingerprint(self) -> str:
        return model_fingerprint(self.stored)

    @property
    @override
    def extractor_weights(self) -> Path | None:
        return self.stored.extractor_weights

    @cached_property
    @override
    def caption_writer(self) -> CaptionWriter:
        if self._captioner is None:
            raise CheckpointError(NO_CAPTIONER)
        return CaptionWriter(self._captioner, self.vocabulary)

    def _kept_names(self) -> RegionNames:
        return self.stored.region_names

    def _on_device(self, features: Features, counts: IntArray | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        real = None if counts is None else torch.from_numpy(counts).to(self.device)
        return torch.from_numpy(np.ascontiguousarray(features)).to(self.device), real


class TorchEncoder(StoredEncoder):
    """An `Encoder` that runs a run or a converted model with torch, on one device.

    >>> encoder = TorchEncoder.load("runs/flickr8k")  # doctest: +SKIP
    >>> encoder.encode_captions(["two dogs play on a beach"]).shape  # doctest: +SKIP
    (1, 256)
    """

    def __init__(self, stored: StoredModel, device: str = "auto", precision: Precision = "fp32") -> None:
        """Move a model to a device, for use rather than training.

        precision  "bf16" rounds weights and products, which is faster and keeps the cosine to "fp32" above 0.999

        Raises `ConfigError` where there is no such device.
        """
        super().__init__(stored, device)
        self.model = stored.model
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.image_encoder = fold(self.model.image_encoder, self.dtype)

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto", precision: Precision = "fp32") -> TorchEncoder:
        """Load a run or a converted model. Raises `CheckpointError` where it cannot be used, or is a SCAN."""
        return cls(read_model(folder), device, precision)

    def _encode_tokens(self, tokens: Sequence[IntArray], advance: Advance) -> FloatArray:
        return encode_tokens(self.model.caption_encoder, tokens, advance, self.dtype)

    @torch.inference_mode()
    def _encode_regions(self, features: Features, counts: IntArray | None) -> FloatArray:
        embeddings: FloatArray = self.image_encoder(*self._on_device(features, counts)).embeddings.float().cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def _reasoned_regions(self, features: Features, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        embeddings, regions = self.image_encoder(*self._on_device(features, counts))
        return embeddings.float().cpu().numpy(), regions.float().cpu().numpy()


@torch.inference_mode()
def encode_tokens(
    encoder: BaseTextEncoder,
    tokens: Sequence[IntArray],
    advance: Advance = lambda _: None,
    dtype: torch.dtype | None = None,
) -> FloatArray:
    """Token ids of each caption -> (num_captions, D) float32; common beginnings are read once where the GRU allows it.

    advance  called with the number of captions of each finished batch
    dtype    what products are computed in; None for the weights' own
    """
    embeddings = np.empty((len(tokens), encoder.config.joint_dim), dtype=np.float32)
    device = next(encoder.parameters()).device
    by_prefix = isinstance(encoder, TextEncoder) and encoder.reads_forwards_only
    # In dictionary order captions with common beginnings fall into one batch; by length little of a batch is padding.
    keys = [ids.tolist() if by_prefix else len(ids) for ids in tokens]
    order = sorted(range(len(tokens)), key=keys.__getitem__)
    for part in slices(len(order), CAPTIONS_PER_BATCH if by_prefix else PADDED_CAPTIONS_PER_BATCH):
        batch = [tokens[place] for place in order[part]]
        if isinstance(encoder, TextEncoder) and by_prefix:
            encoded = encoder.embed(last_states(encoder.gru, encoder.embedding, batch, dtype))
        else:
            padded, lengths = pad_tokens(batch)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                encoded = encoder(padded.to(device), lengths)
        embeddings[order[part]] = encoded.float().cpu()
        advance(len(batch))
    return embeddings


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

    @override
    def encode_split(
        self, split: CaptionedImages, advance: Advance = lambda _: None, batch_size: int = IMAGES_AT_ONCE
    ) -> EncodedSplit:
        self.check_split(split)
        parts = []
        for part in slices(split.num_images, batch_size):
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
    def _sets_of_regions(self, features: Features, counts: IntArray | None) -> EncodedRegions:
        """(B, N, F) region features, (B,) real regions of each or None for all -> the vectors of each region."""
        encoded: EncodedRegions = self.model.region_encoder(*self._on_device(features, counts))
        return encoded

    @torch.inference_mode()
    def _sets_of_words(self, captions: Sequence[str], advance: Advance = lambda _: None) -> EncodedWords:
        """Sentences -> the vectors of their words; those of about one length are read together."""
        tokens = [np.array(self.vocabulary.encode(caption)) for caption in captions]
        lengths = np.array([len(ids) for ids in tokens])
        starts = np.cumsum(lengths) - lengths
        vectors = torch.empty(int(lengths.sum()), self.model.config.joint_dim, device=self.device)
        order = np.argsort(lengths, kind="stable")
        for part in slices(len(order), SCAN_CAPTIONS_PER_BATCH):
            batch = order[part]
            padded, real = pad_tokens([tokens[caption] for caption in batch])
            words = self.model.word_encoder(padded.to(self.device), real)
            for caption, of_caption in zip(batch, words, strict=True):
                vectors[starts[caption] : starts[caption] + lengths[caption]] = of_caption[: lengths[caption]]
            advance(len(batch))
        return EncodedWords(vectors, starts, lengths)
