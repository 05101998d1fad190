"""Trained models that have embeddings, at work in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from vsrn.config import PRETRAINED_TEXT
from vsrn.data.photo_splits import made_ready
from vsrn.data.regions import RegionNames
from vsrn.data.splits import CaptionedImages
from vsrn.devices import brought_back, moved, pace_of, pick_device, tensor_for
from vsrn.encoders.backend import Features, ReadBatch
from vsrn.encoders.base import NO_CAPTIONER, Encoder
from vsrn.encoders.captioning import CaptionWriter, Mask
from vsrn.encoders.folding import evaluating, fold, last_states, state_of
from vsrn.encoders.inputs import IMAGES_AT_ONCE, ProgressOf, size_of_batches, slices
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.provenance import NAME, NAMES_FILE
from vsrn.metrics import Advance, EncodedSplit, FloatArray, IntArray
from vsrn.model.base import EncodedImages, MatchingModel
from vsrn.model.captioner import Captioner, rows_of
from vsrn.model.gru import is_plain, pad_tokens
from vsrn.model.saved import CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, StoredModel, model_fingerprint, write_model
from vsrn.model.vsrn import ImageEncoder, TextEncoder

Precision = Literal["fp32", "bf16"]

# More than a padded batch holds, since the GRU's states of all words of a caption are not kept.
CAPTIONS_PER_BATCH = 4096

# (B, N, F) features and (B,) counts or None, as `StoredEncoder._as_tensors` gives them.
_Tensors = tuple[torch.Tensor, torch.Tensor | None]


class StoredEncoder(Encoder):
    """A model that was read into torch, on one device; it stays the user's.

    What is trained, loaded, moved, hooked or wrapped in it counts from the next call on. Each call computes in
    evaluation mode, and leaves the model in the mode that it was in.
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
        where = str(pick_device(device))
        super().__init__(stored.config, stored.vocabulary, stored.folder, where, stored.regions, has_captioner=able)
        self.stored, self.model = stored, stored.model
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self._fingerprint: tuple[tuple[object, ...], str] | None = None
        here = torch.empty(0, device=self.device).device
        if any(weight.device != here for weight in stored.model.parameters()):
            # Where it is already, `to` would still move a GRU's weights, whose places a recorded step knows.
            stored.model.to(here)
        stored.model.eval()

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

    @override
    def write_files(self, folder: Path) -> set[str]:
        # Where its data lay says something of the machine, and nothing of the model.
        data, here = self.config.data, ("path", "photos", "annotations", "held_out", "vocabulary", "word_vectors")
        shortened: dict[str, Any] = {field: Path(getattr(data, field)).name for field in here}
        model, source = self.config.model, Path(self.config.model.text_encoder.removeprefix(PRETRAINED_TEXT))
        if model.text_encoder.startswith(PRETRAINED_TEXT) and (source.is_absolute() or source.exists()):
            model = replace(model, text_encoder=f"{PRETRAINED_TEXT}{source.name}")
        named = replace(self.config, data=replace(data, **shortened), model=model)
        write_model(folder, replace(self.stored, config=named))
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
        return CaptionWriter(partial(TorchCaptions, captioner), captioner.config.max_tokens, self.vocabulary)

    def _kept_names(self) -> RegionNames:
        return self.stored.region_names

    def _as_tensors(self, features: Features, counts: IntArray | None) -> _Tensors:
        """Arrays as tensors on the CPU, ready to be moved; threads may call this."""
        device = device_of(self.stored.model)
        return tensor_for(device, features), None if counts is None else tensor_for(device, np.asarray(counts))

    def _moved(self, features: torch.Tensor, counts: torch.Tensor | None) -> _Tensors:
        """Tensors of `_as_tensors` where the model is now."""
        device = device_of(self.stored.model)
        return moved(features, device), None if counts is None else moved(counts, device)

    def _autocast(self) -> torch.autocast:
        device = device_of(self.stored.model)
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None)


class TorchEncoder(StoredEncoder):
    """An `Encoder` that runs a run or a converted model with torch, on one device."""

    model: MatchingModel
    # The state of the image encoder that was folded, and what that gave.
    _folded: tuple[tuple[object, ...], nn.Module] | None = None

    @property
    @torch.inference_mode()
    def image_encoder(self) -> nn.Module:
        """The model's image encoder as it computes here: folded again whenever weights, parts or hooks have changed."""
        encoder = self.model.image_encoder
        if self.dtype is None and not is_plain(encoder, ImageEncoder):
            return encoder
        with evaluating(self.model):
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

    @override
    def encode_split(
        self, split: CaptionedImages, progress: ProgressOf = False, *, batch_size: int | None = None
    ) -> EncodedSplit:
        encoded = super().encode_split(split, progress, batch_size=batch_size)
        return replace(encoded, device=str(device_of(self.model)))

    @property
    @override
    def images_at_once(self) -> int:
        # Whole photos take a network much more memory than regions.
        return IMAGES_AT_ONCE if self.config.model.network.name else pace_of(device_of(self.model)).images_at_once

    @override
    def _encode_batches(self, reads: Iterable[ReadBatch]) -> Iterator[FloatArray]:
        # Chosen once for all batches: to see whether the weights have changed takes a wait for the device.
        encoder, pace = self.image_encoder, pace_of(device_of(self.model))

        def read(batch: ReadBatch) -> _Tensors:
            return self._as_tensors(*batch())

        ready: Iterable[_Tensors] = map(read, reads)
        if pace.readers:
            ready = (batch for _, (batch,) in made_ready(([batch] for batch in reads), read, pace.readers))
        results = (self._run(encoder, batch).embeddings for batch in ready)
        yield from brought_back(results, pace.launched_ahead)

    def _encode_regions(self, features: Features, counts: IntArray | None) -> FloatArray:
        return next(self._encode_batches([lambda: (features, counts)]))

    def _reasoned_regions(self, features: Features, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        embeddings, regions = self._run(self.image_encoder, self._as_tensors(features, counts))
        return embeddings.float().cpu().numpy(), regions.float().cpu().numpy()

    @torch.inference_mode()
    def _run(self, encoder: nn.Module, batch: _Tensors) -> EncodedImages:
        # What could not be rounded beforehand is rounded product by product.
        rounding = self._autocast() if encoder is self.model.image_encoder else contextlib.nullcontext()
        with evaluating(self.model), rounding:
            encoded: EncodedImages = encoder(*self._moved(*batch))
        return encoded

    @torch.inference_mode()
    def _affinities(self, features: Features, counts: IntArray | None) -> FloatArray:
        encoder = self.model.image_encoder
        if not isinstance(encoder, ImageEncoder):
            return super()._affinities(features, counts)
        with evaluating(self.model), self._autocast():
            tensors = self._moved(*self._as_tensors(features, counts))
            found: FloatArray = encoder.affinities(*tensors).float().cpu().numpy()
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
    device = device_of(encoder)
    pace = pace_of(device)
    by_prefix = (
        pace.shares_prefixes
        and is_plain(encoder, TextEncoder)
        and isinstance(encoder, TextEncoder)
        and encoder.reads_forwards_only
        and is_plain(encoder.gru, nn.GRU)
        and is_plain(encoder.embedding, nn.Embedding)
    )
    # In dictionary order captions with common beginnings fall into one batch; by length little of a batch is padding.
    keys = [ids.tolist() if by_prefix else len(ids) for ids in tokens]
    order = sorted(range(len(tokens)), key=keys.__getitem__)
    size = size_of_batches(batch_size, CAPTIONS_PER_BATCH if by_prefix else pace.captions_at_once)
    parts = list(slices(len(order), size))

    def encode(part: slice) -> torch.Tensor:
        batch = [tokens[place] for place in order[part]]
        if isinstance(encoder, TextEncoder) and by_prefix:
            return encoder.as_embeddings(last_states(encoder.gru, encoder.embedding, batch, dtype))
        padded, lengths = pad_tokens(batch)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            encoded: torch.Tensor = encoder(moved(tensor_for(device, padded.numpy()), device), lengths)
        return encoded

    for part, encoded in zip(parts, brought_back(map(encode, parts), pace.launched_ahead), strict=True):
        if not embeddings.shape[1]:
            # A wrapper around the encoder need not know its size.
            embeddings = np.empty((len(tokens), encoded.shape[1]), dtype=np.float32)
        embeddings[order[part]] = encoded
        advance(len(encoded))
    return embeddings


class TorchCaptions:
    """The captions of a batch, being written where the captioner is; as `vsrn.encoders.captioning.Continuations`."""

    @torch.inference_mode()
    def __init__(self, captioner: Captioner, regions: FloatArray, counts: IntArray | None) -> None:
        weight = next(captioner.parameters())
        self.captioner, self.device = captioner, weight.device
        real = None if counts is None else torch.from_numpy(counts).to(self.device)
        with evaluating(captioner):
            self.regions, self.state = captioner.read(torch.from_numpy(np.ascontiguousarray(regions)).to(weight), real)

    @torch.inference_mode()
    def step(
        self, words: IntArray, rows: IntArray, images: IntArray | None, allowed: Mask, most: int
    ) -> tuple[FloatArray, IntArray]:
        """Write one word more of each row; as the protocol says."""
        if images is not None:
            self.regions = self.regions.of(torch.from_numpy(images).to(self.device))
        state = rows_of(self.state, torch.from_numpy(rows).to(self.device))
        with evaluating(self.captioner):
            embedded = self.captioner.embedding(torch.from_numpy(words).to(self.device))
            self.state = self.captioner.step(embedded, state, self.regions)
            scores = self.captioner.output(self.state[0]).float().log_softmax(dim=-1)
        best, places = scores.masked_fill(~torch.from_numpy(allowed).to(self.device), -torch.inf).topk(most)
        return best.cpu().numpy(), places.cpu().numpy()


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are, or the CPU where it has none."""
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))
