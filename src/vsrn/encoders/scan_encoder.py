"""A trained SCAN at work in torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from vsrn.config import ScanConfig
from vsrn.data.splits import CaptionedImages
from vsrn.encoders import inputs
from vsrn.encoders.backend import Features
from vsrn.encoders.base import Encoder
from vsrn.encoders.explain import ExplainView
from vsrn.encoders.folding import evaluating
from vsrn.encoders.inputs import Photos, ProgressOf
from vsrn.encoders.torch_backend import Precision, StoredEncoder, TorchEncoder, device_of
from vsrn.errors import CheckpointError
from vsrn.metrics import Advance, EncodedSplit, FloatArray, IntArray
from vsrn.model.base import MatchingModel
from vsrn.model.gru import pad_tokens
from vsrn.model.saved import StoredModel
from vsrn.model.scan import SCAN, EncodedRegions, similarities

SCAN_CAPTIONS_PER_BATCH = 512
IMAGES_COMPARED_AT_ONCE = 16
# Affinities worked on at once: few enough to stay in the processor's cache from one operation to the next.
AFFINITIES_AT_ONCE = 2**19
NO_EMBEDDING = (
    'a model of kind "scan" compares words with regions and has no vector of an image; use it with `vsrn evaluate`, or'
    " to re-order what another model finds (--rerank)."
)


def encoder_of(stored: StoredModel[Any], device: str = "auto", precision: Precision = "fp32") -> Encoder:
    """What runs a model that is already read; the arguments are those of `vsrn.load`.

    Raises `ConfigError` where the device is not there, and `CheckpointError` where a registered kind of model has no
    embeddings.
    """
    if isinstance(stored.model, SCAN):
        return ScanEncoder(stored, device, precision)
    if not isinstance(stored.model, MatchingModel):
        raise CheckpointError(
            f'a model of kind "{stored.config.model.kind}" has no embeddings; make it a vsrn.model.base.MatchingModel.'
        )
    return TorchEncoder(stored, device, precision)


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


@torch.inference_mode()
def compare_sets(config: ScanConfig, regions: EncodedRegions, words: EncodedWords) -> FloatArray:
    """Regions of I images, words of C captions -> (I, C) similarities."""
    found = np.empty((len(regions.vectors), len(words)), dtype=np.float32)
    num_regions = regions.vectors.shape[0] * regions.vectors.shape[1]
    # Captions of equal length, so that none is padded.
    for length in np.unique(words.lengths):
        alike = np.flatnonzero(words.lengths == length)
        for part in inputs.slices(len(alike), max(1, AFFINITIES_AT_ONCE // (num_regions * int(length)))):
            captions = alike[part]
            places = torch.from_numpy(words.starts[captions][:, None] + np.arange(length))
            vectors = words.vectors[places.to(words.vectors.device)]
            lengths = torch.from_numpy(words.lengths[captions])
            found[:, captions] = similarities(regions.vectors, vectors, lengths, regions.mask, config).cpu()
    return found


class ScanEncoder(StoredEncoder):
    """An `Encoder` that runs a SCAN in torch: it compares images with captions, and has no embedding of either.

    What needs an embedding raises `CheckpointError`. Words that it never read stay `<unk>`.
    """

    model: SCAN
    reads_stand_ins = False

    @override
    def encode_split(
        self, split: CaptionedImages, progress: ProgressOf = False, *, batch_size: int | None = None
    ) -> EncodedSplit:
        self.check_split(split)
        parts = []
        with inputs.reporting(progress, "encoding", split.num_images + len(split.captions)) as advance:
            for part in inputs.slices(split.num_images, inputs.size_of_batches(batch_size, inputs.IMAGES_AT_ONCE)):
                images = np.arange(part.start, part.stop)
                parts.append(self._sets_of_regions(*split.read_images(images)))
                advance(len(images))
            words = self._sets_of_words(split.captions, advance, batch_size)
        masks = [part.mask for part in parts if part.mask is not None]
        regions = EncodedRegions(torch.cat([part.vectors for part in parts]), torch.cat(masks) if masks else None)
        return EncodedSplit(regions, words, partial(compare_sets, self.model.config.scan), IMAGES_COMPARED_AT_ONCE)

    @override
    def similarity(self, images: Photos | FloatArray, captions: str | Iterable[str] | FloatArray) -> FloatArray:
        if any("float" in str(getattr(values, "dtype", "")) for values in (images, captions)):
            raise CheckpointError(NO_EMBEDDING)
        words = self._sets_of_words(cast("str | Iterable[str]", captions))
        parts = [self._compared(*batch, words) for batch in self._read_photos(images)]
        return np.concatenate([np.empty((0, len(words)), dtype=np.float32), *parts])

    @override
    def compare(
        self, features: npt.ArrayLike, counts: npt.ArrayLike | None, captions: str | Iterable[str]
    ) -> FloatArray:
        features, counts = inputs.check_features(features, counts, self.config.model)
        return self._compared(features, counts, self._sets_of_words(captions))

    def _compared(self, features: FloatArray, counts: IntArray | None, words: EncodedWords) -> FloatArray:
        found = np.empty((len(features), len(words)), dtype=np.float32)
        for part, batch, real in inputs.batches_of(features, counts):
            found[part] = compare_sets(self.model.config.scan, self._sets_of_regions(batch, real), words)
        return found

    @property
    @override
    def default_view(self) -> ExplainView:
        return "relevance"

    @override
    @torch.inference_mode()
    def relevance(self, features: FloatArray, sentence: str, words: Sequence[str]) -> FloatArray:
        """(N, F) regions of an image -> (1 + W, N) float32: how much each fits a sentence, then each of its W words.

        A word's is the cosine of the region with the word, read in its sentence, or the mean where it occurs several
        times; the sentence's the mean of these words, or of every token where there are none.
        """
        checked, _ = inputs.check_features(features[None], None, self.config.model)
        regions = self._sets_of_regions(checked, None).vectors[0].float()
        affinity = (self._sets_of_words(sentence).vectors.float() @ regions.mT).cpu().numpy()
        tokens = np.array(self.vocabulary.encode(sentence))
        of_words: list[FloatArray] = [affinity[tokens == self.vocabulary.ids[word]].mean(axis=0) for word in words]
        return np.stack([np.mean(of_words or affinity, axis=0), *of_words]).astype(np.float32)

    def _no_embedding(self, *_: object, **__: object) -> NoReturn:
        raise CheckpointError(NO_EMBEDDING)

    _encode_tokens = _encode_regions = _reasoned_regions = _no_embedding

    @torch.inference_mode()
    def _sets_of_regions(self, features: Features, counts: IntArray | None) -> EncodedRegions:
        """(B, N, F) region features, (B,) real regions of each or None for all -> the vectors of each region."""
        with evaluating(self.model), self._autocast():
            encoded: EncodedRegions = self.model.region_encoder(*self._moved(*self._as_tensors(features, counts)))
        return encoded

    @torch.inference_mode()
    def _sets_of_words(
        self, captions: str | Iterable[str], advance: Advance = lambda _: None, batch_size: int | None = None
    ) -> EncodedWords:
        """Sentences -> the vectors of their words; those of about one length are read together."""
        tokens = self._tokens(inputs.list_of_captions(captions))
        device = device_of(self.model)
        lengths = np.array([len(ids) for ids in tokens])
        starts = np.cumsum(lengths) - lengths
        vectors = torch.empty(int(lengths.sum()), self.model.config.joint_dim, device=device)
        order = np.argsort(lengths, kind="stable")
        for part in inputs.slices(len(order), inputs.size_of_batches(batch_size, SCAN_CAPTIONS_PER_BATCH)):
            batch = order[part]
            padded, real = pad_tokens([tokens[caption] for caption in batch])
            with evaluating(self.model), self._autocast():
                words = self.model.word_encoder(padded.to(device), real)
            for caption, of_caption in zip(batch, words, strict=True):
                vectors[starts[caption] : starts[caption] + lengths[caption]] = of_caption[: lengths[caption]]
            advance(len(batch))
        return EncodedWords(vectors, starts, lengths)
