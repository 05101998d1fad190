"""A trained model at work: captions or regions in, vectors of the joint space out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vsrn.config import RegionOrder
from vsrn.data.datasets import seen_by
from vsrn.data.region_store import FloatArray, IntArray
from vsrn.data.splits import CaptionedImages, Split, at_places, back_in_place, in_order, reading_places
from vsrn.data.vocabulary import Vocabulary
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.captions import NO_CAPTIONER, RegionBatch, WritesCaptions
from vsrn.encoders.encoded import Advance, EncodedVectors
from vsrn.encoders.explain import ExplainView, Explanation
from vsrn.encoders.folding import fold
from vsrn.encoders.photos import explain_photo, learned_extractor, pixels_of, regions_of
from vsrn.encoders.prefixes import last_states
from vsrn.errors import CheckpointError, ConfigError
from vsrn.model.image_encoder import EncodedImages
from vsrn.model.saved import StoredModel, read_model
from vsrn.model.text_encoder import CaptionEncoder, pad_tokens

Precision = Literal["fp32", "bf16"]

IMAGES_PER_BATCH = 128
CAPTIONS_PER_BATCH = 4096
# Where every word's state is kept, of captions of about one length.
PADDED_CAPTIONS_PER_BATCH = 256


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU. Raises `ConfigError` where a device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"there is no device '{name}' here; use cpu, cuda, mps or auto.") from error
    return device


class Encoder(WritesCaptions):
    """Encodes captions and regions, and writes captions, with one model on one device.

    >>> encoder = Encoder.load("runs/flickr8k")  # doctest: +SKIP
    >>> encoder.encode_captions(["two dogs play on a beach"]).shape  # doctest: +SKIP
    (1, 256)
    """

    def __init__(self, stored: StoredModel, device: str = "auto", precision: Precision = "fp32") -> None:
        self.stored = stored
        self.device = pick_device(device)
        self.model = stored.model.to(self.device).eval()
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.image_encoder = fold(self.model.image_encoder, self.dtype)

    @property
    def similarity(self) -> str:
        """How an image and a caption embedding are compared: "cosine" or "order"."""
        return self.model.config.similarity

    @property
    def region_order(self) -> RegionOrder:
        """The order in which the model reads an image's regions."""
        return self.stored.config.data.region_order

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto", precision: Precision = "fp32") -> Encoder:
        """Load a run or a converted model. Raises `CheckpointError` where it cannot be used.

        precision  "bf16" rounds weights and products, which is faster and keeps the cosine to "fp32" above 0.999
        """
        return cls(read_model(folder), device, precision)

    def encode_captions(self, captions: Sequence[str]) -> FloatArray:
        """Sentences -> (B, D) float32 embeddings."""
        return encode_captions(self.model.caption_encoder, self.stored.vocabulary, captions, dtype=self.dtype)

    def encode_regions(self, features: FloatArray, counts: IntArray | None = None) -> FloatArray:
        """(B, N, F) region features, (B,) real regions of each or None for all -> (B, D) float32."""
        ordered = in_order(features, counts, self.region_order)
        with torch.inference_mode():
            return _encode_regions(self.image_encoder, ordered, counts)

    def reasoned_regions(self, features: FloatArray, counts: IntArray | None = None) -> tuple[FloatArray, FloatArray]:
        """The same -> (B, D) float32 embeddings and (B, N, D) float32 what entered the aggregator, of each region."""
        places = reading_places(features, counts, self.region_order)
        with torch.inference_mode():
            encoded = _encode(self.image_encoder, at_places(features, places), counts)
            regions = back_in_place(encoded.reasoned_regions.float().cpu().numpy(), places)
            return encoded.embeddings.float().cpu().numpy(), regions

    def explain(self, photo: Path | str, sentence: str, view: ExplainView = "sentence") -> Explanation:
        """Which regions of a photo file earned its match with a sentence, or made its embedding (view "image").

        Raises what `encode_images` raises.
        """
        if self.model.config.network.name:
            raise CheckpointError("this model reads photos whole, so no region can be named; explain one of regions.")
        extractor = learned_extractor(self.stored.regions, self.stored.extractor_weights)
        return explain_photo(self, extractor, photo, sentence, view, self.stored.region_names)

    def photo_regions(self, photos: Sequence[Path | str]) -> Iterator[RegionBatch]:
        """Photo files -> features and counts, a batch at a time. Raises what `encode_images` raises."""
        return regions_of(photos, self.stored.regions, self.stored.extractor_weights)

    @cached_property
    def caption_writer(self) -> CaptionWriter:
        """The captioner at work. Raises `CheckpointError` where the model has none."""
        if self.model.captioner is None:
            raise CheckpointError(NO_CAPTIONER)
        return CaptionWriter(self.model.captioner, self.stored.vocabulary)

    def encode_images(self, photos: Sequence[Path | str]) -> FloatArray:
        """Photo files -> (B, D) float32, by the model's own network or the extractor that made its training data.

        Raises `PhotoError` where a photo cannot be read, and `DataError` where the extractor here is not
        the one that the model learned from.
        """
        network = self.model.config.network
        batches = pixels_of(photos, network) if network.name else self.photo_regions(photos)
        with torch.inference_mode():
            parts = [_encode_regions(self.image_encoder, *batch) for batch in batches]
        return np.concatenate(parts) if parts else np.empty((0, self.model.config.joint_dim), dtype=np.float32)

    def encode_split(self, split: CaptionedImages, advance: Advance = lambda _: None) -> EncodedVectors:
        """Encode each image and each caption of a split once; `advance` hears of each finished batch.

        Raises `DataError` where the split's images are not what the model learned from.
        """
        self.stored.refuse_other_images(split)
        if isinstance(split, Split):
            split = split.in_order(self.region_order)
        else:
            split = seen_by(split, self.model.config.network)
        encoder, vocabulary = self.model.caption_encoder, self.stored.vocabulary
        return EncodedVectors(
            images=encode_images(self.image_encoder, split, advance),
            captions=encode_captions(encoder, vocabulary, split.captions, advance, self.dtype),
            similarity=self.similarity,
        )


@torch.inference_mode()
def encode_images(encoder: nn.Module, split: CaptionedImages, advance: Advance = lambda _: None) -> FloatArray:
    """(num_images, D) float32 embeddings of a split's images, read from disk batch by batch.

    Raises `DataError` where the model makes no number of an image because it is all zeros, naming the row.
    """
    parts = []
    for images in _batches(np.arange(split.num_images), IMAGES_PER_BATCH):
        features, counts = split.read_images(images)
        parts.append(_encode_regions(encoder, features, counts))
        if isinstance(split, Split) and not np.isfinite(parts[-1]).all():
            split.regions.check_zeros(split.rows[images], features, counts)
        advance(len(images))
    return np.concatenate(parts)


def encode_captions(
    encoder: CaptionEncoder,
    vocabulary: Vocabulary,
    captions: Sequence[str],
    advance: Advance = lambda _: None,
    dtype: torch.dtype | None = None,
) -> FloatArray:
    """(num_captions, D) float32 embeddings, computed in `dtype` or the weights' own."""
    return encode_tokens(encoder, [np.array(vocabulary.encode(caption)) for caption in captions], advance, dtype)


@torch.inference_mode()
def encode_tokens(
    encoder: CaptionEncoder,
    tokens: Sequence[IntArray],
    advance: Advance = lambda _: None,
    dtype: torch.dtype | None = None,
) -> FloatArray:
    """Token ids of each caption -> (num_captions, D) float32; what begins alike is read once where that is enough."""
    embeddings = np.empty((len(tokens), encoder.config.joint_dim), dtype=np.float32)
    if encoder.reads_forwards_only:
        # As in a dictionary, so that captions which begin alike fall into the same batch.
        order, size = sorted(range(len(tokens)), key=lambda place: tokens[place].tolist()), CAPTIONS_PER_BATCH
    else:
        order, size = sorted(range(len(tokens)), key=lambda place: len(tokens[place])), PADDED_CAPTIONS_PER_BATCH
    for places in _batches(np.array(order, dtype=np.int64), size):
        batch = [tokens[place] for place in places]
        if encoder.reads_forwards_only:
            encoded = encoder.embed(last_states(encoder.gru, encoder.embedding, batch, dtype))
        else:
            encoded = _encode_padded(encoder, batch, dtype)
        embeddings[places] = encoded.float().cpu()
        advance(len(places))
    return embeddings


def _encode_padded(encoder: CaptionEncoder, tokens: Sequence[IntArray], dtype: torch.dtype | None) -> torch.Tensor:
    """Captions read from both ends, or pooled over all their words, share no prefixes: (num_captions, D)."""
    padded, lengths = pad_tokens(tokens)
    device = _device_of(encoder)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        embeddings: torch.Tensor = encoder(padded.to(device), lengths)
    return embeddings


def _encode_regions(encoder: nn.Module, features: npt.NDArray[Any], counts: IntArray | None) -> FloatArray:
    return np.asarray(_encode(encoder, features, counts).embeddings.float().cpu().numpy())


def _encode(encoder: nn.Module, features: npt.NDArray[Any], counts: IntArray | None) -> EncodedImages:
    device = _device_of(encoder)
    on_device = torch.from_numpy(np.ascontiguousarray(features)).to(device)
    real = None if counts is None else torch.from_numpy(counts).to(device)
    encoded: EncodedImages = encoder(on_device, real)
    return encoded


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _batches(places: IntArray, size: int) -> Iterator[IntArray]:
    for first in range(0, len(places), size):
        yield places[first : first + size]
