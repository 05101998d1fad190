"""Trained models at work in torch: one that has embeddings, and SCAN, which compares sets of regions and words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from typing_extensions import override

from vsrn.config import ScanConfig
from vsrn.data.regions import RegionNames
from vsrn.data.splits import CaptionedImages
from vsrn.devices import pick_device
from vsrn.encoders.backend import Features
from vsrn.encoders.base import IMAGES_AT_ONCE, NO_CAPTIONER, Encoder
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.folding import evaluating, fold, last_states, state_of
from vsrn.encoders.inputs import ProgressOf, batches_of, list_of_captions, reporting, size_of_batches, slices
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.provenance import NAME, NAMES_FILE
from vsrn.metrics import Advance, EncodedSplit, FloatArray, IntArray
from vsrn.model.base import EncodedImages, MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.gru import is_plain, pad_tokens
from vsrn.model.saved import (
    CONFIG_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    StoredModel,
    model_fingerprint,
    read_model,
    write_model,
)
from vsrn.model.scan import SCAN, EncodedRegions, similarities
from vsrn.model.vsrn import ImageEncoder, TextEncoder

if TYPE_CHECKING:
    from vsrn.encoders.inputs import Photos

Precision = Literal["fp32", "bf16"]

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
    """What runs a model that is already read.

    precision  as `TorchEncoder` takes it

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


class StoredEncoder(Encoder):
    """What `TorchEncoder` and `ScanEncoder` share: a model that was read into torch, on one device.

    The model stays the user's: what is trained, loaded, moved, hooked or wrapped in it counts from the next call on.
    Each call computes in evaluation mode, and leaves the model in the mode that it was in.
    """

    main_file = WEIGHTS_FILE

    def __init__(self, stored: StoredModel[Any], device: str = "auto", precision: Precision = "fp32") -> None:
        """Move a model to a device, in evaluation mode.

        precision  "bf16" rounds weights and products, which is faster and keeps the cosine to "fp32" above 0.999

        Raises `ConfigError` where there is no such device or precision.
        """
        if precision not in get_args(Precision):
            raise ConfigError(f"there is no precision {precision!r}; use fp32 or bf16.")
        able = getattr(stored.model, "captioner", None) is not None
        super().__init__(stored.config, stored.vocabulary, str(pick_device(device)), stored.regions, has_captioner=able)
        self.stored = stored
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self._fingerprint: tuple[tuple[object, ...], str] | None = None
        stored.model.to(self.device).eval()

    @property
    @override
    def similarity_name(self) -> str:
        return str(self.stored.model.similarity)

    @property
    @override
    def fingerprint(self) -> str:
        state = state_of(self.stored.model)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, model_fingerprint(self.stored)
        return self._fingerprint[1]

    @property
    @override
    def folder(self) -> Path | None:
        return self.stored.folder

    @override
    def write_files(self, folder: Path) -> set[str]:
        # Where its data lay says something of the machine, and nothing of the model.
        data, here = self.config.data, ("path", "photos", "annotations", "held_out", "vocabulary", "word_vectors")
        shortened: dict[str, Any] = {field: Path(getattr(data, field)).name for field in here}
        named = replace(data, **shortened)
        write_model(folder, replace(self.stored, config=replace(self.config, data=named)))
        weights, names = self.extractor_weights, self._kept_names()
        written = {CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE}
        written |= set() if weights is None else {f"{NAME}{weights.suffix}"}
        return written | ({NAMES_FILE} if names.classes or names.attributes else set())

    @property
    @override
    def extractor_weights(self) -> Path | None:
        return self.stored.extractor_weights

    @property
    @override
    def caption_writer(self) -> CaptionWriter:
        captioner: Captioner | None = getattr(self.stored.model, "captioner", None)
        if captioner is None:
            raise CheckpointError(NO_CAPTIONER)
        return CaptionWriter(captioner, self.vocabulary)

    def _kept_names(self) -> RegionNames:
        return self.stored.region_names

    def _on_device(self, features: Features, counts: IntArray | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Arrays as tensors where the model is now."""
        device = _device_of(self.stored.model)
        real = None if counts is None else torch.from_numpy(np.array(counts)).to(device)
        # torch warns of arrays that nobody may write, such as those of a file that was opened to be read.
        features = np.ascontiguousarray(features) if features.flags.writeable else np.array(features)
        return torch.from_numpy(features).to(device), real

    def _autocast(self) -> torch.autocast:
        device = _device_of(self.stored.model)
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None)


class TorchEncoder(StoredEncoder):
    """An `Encoder` that runs a run or a converted model with torch, on one device.

    >>> encoder = TorchEncoder.load("runs/flickr8k")  # doctest: +SKIP
    >>> encoder.encode_captions(["two dogs play on a beach"]).shape  # doctest: +SKIP
    (1, 256)
    """

    def __init__(self, stored: StoredModel, device: str = "auto", precision: Precision = "fp32") -> None:
        """Move a model to a device; arguments and errors are those of `StoredEncoder`."""
        super().__init__(stored, device, precision)
        self.model = stored.model
        self._folded: tuple[tuple[object, ...], nn.Module] | None = None

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto", precision: Precision = "fp32") -> TorchEncoder:
        """Load a run or a converted model. Raises `CheckpointError` where it cannot be used, or is a SCAN."""
        return cls(read_model(folder), device, precision)

    @property
    def image_encoder(self) -> nn.Module:
        """The model's image encoder as it computes here: folded again whenever weights, parts or hooks have changed."""
        encoder = self.model.image_encoder
        if self.dtype is None and not is_plain(encoder, ImageEncoder):
            return encoder
        state = state_of(encoder)
        if self._folded is None or self._folded[0] != state:
            self._folded = state, fold(encoder, self.dtype)
        return self._folded[1]

    @override
    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_folded": None, "_fingerprint": None}

    def _encode_tokens(self, tokens: Sequence[IntArray], advance: Advance, batch_size: int | None) -> FloatArray:
        if not tokens:
            return np.empty((0, self.config.model.joint_dim), dtype=np.float32)
        with evaluating(self.model):
            return encode_tokens(self.model.caption_encoder, tokens, advance, self.dtype, batch_size)

    def _encode_regions(self, features: Features, counts: IntArray | None) -> FloatArray:
        embeddings: FloatArray = self._encoded(features, counts).embeddings.float().cpu().numpy()
        return embeddings

    def _reasoned_regions(self, features: Features, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        embeddings, regions = self._encoded(features, counts)
        return embeddings.float().cpu().numpy(), regions.float().cpu().numpy()

    @torch.inference_mode()
    def _encoded(self, features: Features, counts: IntArray | None) -> EncodedImages:
        with evaluating(self.model):
            encoder = self.image_encoder
            # What could not be rounded beforehand is rounded product by product.
            with self._autocast() if encoder is self.model.image_encoder else contextlib.nullcontext():
                encoded: EncodedImages = encoder(*self._on_device(features, counts))
        return encoded

    @torch.inference_mode()
    def _affinities(self, features: Features, counts: IntArray | None) -> FloatArray:
        encoder = self.model.image_encoder
        if not isinstance(encoder, ImageEncoder):
            return super()._affinities(features, counts)
        with evaluating(self.model), self._autocast():
            found: FloatArray = encoder.affinities(*self._on_device(features, counts)).float().cpu().numpy()
        return found


@torch.inference_mode()
def encode_tokens(
    encoder: nn.Module,
    tokens: Sequence[IntArray],
    advance: Advance = lambda _: None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> FloatArray:
    """Token ids of each caption -> (num_captions, D) float32; common beginnings are read once where the GRU allows it.

    advance     called with the number of captions of each finished batch
    dtype       what products are computed in; None for the weights' own
    batch_size  captions that are read at a time; None for a number that suits the way they are read
    """
    embeddings = np.empty((len(tokens), 0), dtype=np.float32)
    device = _device_of(encoder)
    by_prefix = (
        is_plain(encoder, TextEncoder)
        and isinstance(encoder, TextEncoder)
        and encoder.reads_forwards_only
        and is_plain(encoder.gru, nn.GRU)
        and is_plain(encoder.embedding, nn.Embedding)
    )
    # In dictionary order captions with common beginnings fall into one batch; by length little of a batch is padding.
    keys = [ids.tolist() if by_prefix else len(ids) for ids in tokens]
    order = sorted(range(len(tokens)), key=keys.__getitem__)
    size = size_of_batches(batch_size, CAPTIONS_PER_BATCH if by_prefix else PADDED_CAPTIONS_PER_BATCH)
    for part in slices(len(order), size):
        batch = [tokens[place] for place in order[part]]
        if isinstance(encoder, TextEncoder) and by_prefix:
            encoded = encoder.embed(last_states(encoder.gru, encoder.embedding, batch, dtype))
        else:
            padded, lengths = pad_tokens(batch)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                encoded = encoder(padded.to(device), lengths)
        if not embeddings.shape[1]:
            # A wrapper around the encoder need not know its size.
            embeddings = np.empty((len(tokens), encoded.shape[1]), dtype=np.float32)
        embeddings[order[part]] = encoded.float().cpu()
        advance(len(batch))
    return embeddings


def _device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are, or the CPU where it has none."""
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


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
    """An `Encoder` that runs a SCAN in torch: it compares images with captions, and has no embedding of either.

    `compare`, `similarity` of photos and sentences, and `encode_split` work; whatever needs an embedding raises
    `CheckpointError`.
    """

    def __init__(self, stored: StoredModel[SCAN], device: str = "auto", precision: Precision = "fp32") -> None:
        """Move a SCAN to a device; arguments and errors are those of `StoredEncoder`."""
        super().__init__(stored, device, precision)
        self.model = stored.model

    @override
    def encode_split(
        self, split: CaptionedImages, progress: ProgressOf = False, *, batch_size: int | None = None
    ) -> EncodedSplit:
        self.check_split(split)
        parts = []
        with reporting(progress, "encoding", split.num_images + len(split.captions)) as advance:
            for part in slices(split.num_images, size_of_batches(batch_size, IMAGES_AT_ONCE)):
                images = np.arange(part.start, part.stop)
                parts.append(self._sets_of_regions(*split.read_images(images)))
                advance(len(images))
            words = self._sets_of_words(split.captions, advance, batch_size)
        return EncodedSplit(
            _joined_sets(parts), words, partial(compare_sets, self.model.config.scan), IMAGES_COMPARED_AT_ONCE
        )

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
        features, counts = self._check_features(features, counts)
        return self._compared(features, counts, self._sets_of_words(captions))

    def _compared(self, features: FloatArray, counts: IntArray | None, words: EncodedWords) -> FloatArray:
        found = np.empty((len(features), len(words)), dtype=np.float32)
        for part, batch, real in batches_of(features, counts, IMAGES_AT_ONCE):
            found[part] = compare_sets(self.model.config.scan, self._sets_of_regions(batch, real), words)
        return found

    def _no_embedding(self, *_: object, **__: object) -> NoReturn:
        raise CheckpointError(NO_EMBEDDING)

    _encode_tokens = _encode_regions = _reasoned_regions = _no_embedding

    @torch.inference_mode()
    def _sets_of_regions(self, features: Features, counts: IntArray | None) -> EncodedRegions:
        """(B, N, F) region features, (B,) real regions of each or None for all -> the vectors of each region."""
        with evaluating(self.model), self._autocast():
            encoded: EncodedRegions = self.model.region_encoder(*self._on_device(features, counts))
        return encoded

    @torch.inference_mode()
    def _sets_of_words(
        self, captions: str | Iterable[str], advance: Advance = lambda _: None, batch_size: int | None = None
    ) -> EncodedWords:
        """Sentences -> the vectors of their words; those of about one length are read together."""
        tokens = [np.array(self.vocabulary.encode(caption)) for caption in list_of_captions(captions)]
        device = _device_of(self.model)
        lengths = np.array([len(ids) for ids in tokens])
        starts = np.cumsum(lengths) - lengths
        vectors = torch.empty(int(lengths.sum()), self.model.config.joint_dim, device=device)
        order = np.argsort(lengths, kind="stable")
        for part in slices(len(order), size_of_batches(batch_size, SCAN_CAPTIONS_PER_BATCH)):
            batch = order[part]
            padded, real = pad_tokens([tokens[caption] for caption in batch])
            with evaluating(self.model), self._autocast():
                words = self.model.word_encoder(padded.to(device), real)
            for caption, of_caption in zip(batch, words, strict=True):
                vectors[starts[caption] : starts[caption] + lengths[caption]] = of_caption[: lengths[caption]]
            advance(len(batch))
        return EncodedWords(vectors, starts, lengths)


def _joined_sets(parts: Sequence[EncodedRegions]) -> EncodedRegions:
    """Regions of several batches as one."""
    masks = [part.mask for part in parts if part.mask is not None]
    return EncodedRegions(torch.cat([part.vectors for part in parts]), torch.cat(masks) if masks else None)
