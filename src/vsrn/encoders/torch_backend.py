"""A trained model at work in torch: sentences, regions, photos and splits in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames
from vsrn.devices import pick_device
from vsrn.encoders.base import NO_CAPTIONER, PHOTOS_AT_ONCE, Encoder, Features, slices
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.folding import fold, last_states
from vsrn.errors import CheckpointError
from vsrn.metrics import Advance, FloatArray, IntArray
from vsrn.model.base import BaseTextEncoder, EncodedImages
from vsrn.model.gru import pad_tokens
from vsrn.model.saved import StoredModel, model_fingerprint, read_model
from vsrn.model.vsrn import TextEncoder

Precision = Literal["fp32", "bf16"]

CAPTIONS_PER_BATCH = 4096
# Fewer where the GRU's states of all words of a caption are kept.
PADDED_CAPTIONS_PER_BATCH = 256


class StoredEncoder(Encoder):
    """What `TorchEncoder` and `ScanEncoder` share: a model that was read into torch, on one device."""

    def __init__(self, stored: StoredModel[Any], device: str = "auto") -> None:
        """Move a model to a device, in evaluation mode. Raises `ConfigError` where there is no such device."""
        super().__init__(stored.config, stored.vocabulary, str(pick_device(device)))
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
    def learned_from(self) -> StoreInfo:
        return self.stored.regions

    @property
    @override
    def extractor_weights(self) -> Path | None:
        return self.stored.extractor_weights

    @property
    def _kept_names(self) -> RegionNames:
        return self.stored.region_names


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

    @property
    @override
    def has_captioner(self) -> bool:
        return self.model.captioner is not None

    @cached_property
    @override
    def caption_writer(self) -> CaptionWriter:
        if self.model.captioner is None:
            raise CheckpointError(NO_CAPTIONER)
        return CaptionWriter(self.model.captioner, self.vocabulary)

    @override
    def encode_images(self, photos: Sequence[Path | str]) -> FloatArray:
        network = self.config.model.network
        if not network.name or isinstance(photos, str | Path):
            return super().encode_images(photos)
        # Only models that read pixels need what cuts them out.
        from vsrn.data.photo_splits import View  # noqa: PLC0415

        view = View.of(network)
        parts = [
            self._encode_regions(np.stack([view.read_middle(Path(photo)) for photo in photos[part]]))
            for part in slices(len(photos), PHOTOS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else self.encode_captions([])

    def _encode_tokens(self, tokens: Sequence[IntArray], advance: Advance) -> FloatArray:
        return encode_tokens(self.model.caption_encoder, tokens, advance, self.dtype)

    @torch.inference_mode()
    def _encode_regions(self, features: Features, counts: IntArray | None = None) -> FloatArray:
        return np.asarray(self._run(features, counts).embeddings.float().cpu().numpy())

    @torch.inference_mode()
    def _reasoned_regions(self, features: Features, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        embeddings, regions = (tensor.float().cpu().numpy() for tensor in self._run(features, counts))
        return embeddings, regions

    def _run(self, features: Features, counts: IntArray | None) -> EncodedImages:
        on_device = torch.from_numpy(np.ascontiguousarray(features)).to(self.device)
        real = None if counts is None else torch.from_numpy(counts).to(self.device)
        encoded: EncodedImages = self.image_encoder(on_device, real)
        return encoded


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
    if isinstance(encoder, TextEncoder) and encoder.reads_forwards_only:
        # In dictionary order, so that captions with common beginnings fall into the same batch.
        order, size = sorted(range(len(tokens)), key=lambda place: tokens[place].tolist()), CAPTIONS_PER_BATCH
    else:
        order, size = sorted(range(len(tokens)), key=lambda place: len(tokens[place])), PADDED_CAPTIONS_PER_BATCH
    for part in slices(len(order), size):
        places = order[part]
        batch = [tokens[place] for place in places]
        if isinstance(encoder, TextEncoder) and encoder.reads_forwards_only:
            encoded = encoder.embed(last_states(encoder.gru, encoder.embedding, batch, dtype))
        else:
            encoded = _encode_padded(encoder, batch, dtype)
        embeddings[places] = encoded.float().cpu()
        advance(len(places))
    return embeddings


def _encode_padded(encoder: BaseTextEncoder, tokens: Sequence[IntArray], dtype: torch.dtype | None) -> torch.Tensor:
    """Captions read from both ends, or pooled over all their words, share no prefixes: (num_captions, D)."""
    padded, lengths = pad_tokens(tokens)
    device = _device_of(encoder)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        embeddings: torch.Tensor = encoder(padded.to(device), lengths)
    return embeddings


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
