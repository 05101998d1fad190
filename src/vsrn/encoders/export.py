"""A model -> a folder that answers queries without torch: `vsrn.encoders.onnx_backend` reads it."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch

from vsrn.config import config_to_toml
from vsrn.data.splits import at_places, back_in_place, reading_places
from vsrn.data.vocabulary import START
from vsrn.encoders.captioning import write_captioner
from vsrn.encoders.onnx_backend import (
    CAPTION_FILE,
    CAPTIONER_FILE,
    CONFIG_FILE,
    EMBEDDINGS,
    IMAGE_FILE,
    INFO_FILE,
    MODEL_KEY,
    REGIONS,
    VOCABULARY_FILE,
    ExportInfo,
    OnnxEncoder,
    StoredPrecision,
)
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.provenance import carry_names, carry_weights
from vsrn.files import new_folder, write_atomically
from vsrn.metrics import FloatArray
from vsrn.model.saved import StoredModel, model_fingerprint, write_model
from vsrn.model.vsrn import ImageEncoder, TextEncoder

# Largest difference from the model that a fp32 export may have, as a share of the largest number compared.
TOLERANCE = 1e-4
# Least cosine of an fp16 export's embeddings with the model's.
LEAST_COSINE = 0.9999
# An ONNX file is one protocol buffer, which cannot be larger; a little is left for the graph.
MOST_BYTES = 2**31 - 2**24


def export_onnx(stored: StoredModel, folder: Path, precision: StoredPrecision = "fp32") -> ExportInfo:
    """Write a model's encoders, vocabulary and config to a new folder that `OnnxEncoder.load` opens.

    precision  how weights are stored: "fp16" takes half the size, computing in float32 all the same

    The folder appears whole or not at all, and only after its encoders gave the model's own embeddings. Raises
    `CheckpointError` where the folder is taken or the model cannot be exported, and `ConfigError` where the package
    `onnx` is missing.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("exporting needs the package onnx; run `pip install '.[onnx]'` in the checkout.")
    check_free(folder)
    _check_exportable(stored)
    # These take a second to import, and a missing package is reported before.
    from vsrn.encoders.onnx_graph import ExportableCaptions, ExportableImages, halve_extractor, write_graph  # noqa: PLC0415

    info = _info_of(stored, precision)
    assert isinstance(stored.model.image_encoder, ImageEncoder)
    assert isinstance(stored.model.caption_encoder, TextEncoder)
    images, captions = _own(stored.model.image_encoder), _own(stored.model.caption_encoder)
    with new_folder(folder) as temporary, torch.no_grad():
        regions = _example_regions(info.feature_dim)
        write_graph(temporary / IMAGE_FILE, ExportableImages(images), regions, [EMBEDDINGS, REGIONS], info)
        tokens = _example_tokens(len(stored.vocabulary))
        write_graph(temporary / CAPTION_FILE, ExportableCaptions(captions), tokens, [EMBEDDINGS], info)
        write_atomically(temporary / CONFIG_FILE, config_to_toml(stored.config).encode())
        write_atomically(temporary / VOCABULARY_FILE, stored.vocabulary.to_json())
        if stored.model.captioner is not None:
            dtype = torch.float32 if precision == "fp32" else torch.float16
            write_captioner(temporary / CAPTIONER_FILE, stored.model.captioner, {MODEL_KEY: info.model}, dtype)
        if stored.extractor_weights is not None:
            if precision == "fp16" and info.extractor == "grid":
                # As halves they are the weights of another extractor.
                made_of = halve_extractor(stored.extractor_weights, temporary)
                info = msgspec.structs.replace(info, extractor_fingerprint=made_of)
            else:
                carry_weights(stored.extractor_weights, temporary)
        carry_names(stored.region_names, temporary)
        write_atomically(temporary / INFO_FILE, msgspec.json.format(msgspec.json.encode(info), indent=1))
        _check_same(OnnxEncoder.load(temporary, threads=1), images, captions)
    return info


def export_model(stored: StoredModel, folder: Path) -> None:
    """Write the portable part of a run to a new folder, whole or not at all; `read_model` reads it anywhere.

    Raises `CheckpointError` where the folder is taken.
    """
    check_free(folder)
    with new_folder(folder) as temporary:
        write_model(temporary, stored)


def check_free(folder: Path) -> None:
    """Raise `CheckpointError` where something is in the place of a folder to be written."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise CheckpointError(f"{folder} already exists; choose another folder.")


def _check_exportable(stored: StoredModel) -> None:
    images, captions = (getattr(stored.model, f"{side}_encoder", None) for side in ("image", "caption"))
    if type(images) is not ImageEncoder or type(captions) is not TextEncoder:
        raise CheckpointError(
            f"a model of kind '{stored.config.model.kind}' with other encoders than vsrn's own for regions and captions"
            " cannot be exported; use it through torch."
        )
    for side, encoder in (("image", images), ("caption", captions)):
        tensors = encoder.state_dict()
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"the model cannot be exported: {side}_encoder.{name} holds NaN or infinity; train it again."
                )
        if sum(4 * tensor.numel() for tensor in tensors.values()) > MOST_BYTES:
            raise CheckpointError(
                f"the model cannot be exported: its {side} encoder is above the 2 GB of an ONNX file;"
                " use it through torch."
            )


Half = TypeVar("Half", ImageEncoder, TextEncoder)


def _own(encoder: Half) -> Half:
    """A copy on the CPU in evaluation mode; the model's own encoder stays on its device and in its mode."""
    return copy.deepcopy(encoder).cpu().float().eval()


def _info_of(stored: StoredModel, precision: StoredPrecision) -> ExportInfo:
    feature_dim = stored.config.model.feature_dim
    assert feature_dim is not None, "a model that was built knows its feature size"
    return ExportInfo(
        model=model_fingerprint(stored),
        precision=precision,
        joint_dim=stored.config.model.joint_dim,
        feature_dim=feature_dim,
        vocabulary=stored.vocabulary.fingerprint,
        extractor=stored.regions.extractor,
        extractor_fingerprint=stored.regions.fingerprint,
    )


Example = dict[str, torch.Tensor]


def _example_regions(feature_dim: int, images: int = 2, regions: int = 3, fewest: int = 1) -> Example:
    """Random regions; the first image has the fewest real ones, the last has all."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, regions, feature_dim, generator=generator)
    return {"features": features, "counts": torch.linspace(fewest, regions, images).long()}


def _example_tokens(vocabulary_size: int, captions: int = 2, tokens: int = 4) -> Example:
    """Random tokens; the first caption has one, the last has all."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(START, vocabulary_size, (captions, tokens), generator=generator)
    return {"tokens": ids, "lengths": torch.linspace(1, tokens, captions).long()}


def _check_same(exported: OnnxEncoder, images: ImageEncoder, captions: TextEncoder) -> None:
    """Raise `CheckpointError` unless the export gives what the model gives, at sizes it was not traced with."""
    halves = exported.info.precision == "fp16"
    # Of a single region, channels normalised over the regions keep their sign alone, which rounding may flip.
    regions = _example_regions(exported.info.feature_dim, images=5, regions=20, fewest=10 if halves else 1)
    tokens = _example_tokens(len(exported.vocabulary), captions=5, tokens=23)
    features, counts = regions["features"].numpy(), regions["counts"].numpy()
    places = reading_places(features, counts, exported.region_order)
    encoded = images(torch.from_numpy(at_places(features, places)), regions["counts"])
    reasoned = back_in_place(encoded.reasoned_regions.numpy(), places)
    by_torch = encoded.embeddings.numpy(), reasoned, captions(**tokens).numpy()
    by_onnx = (
        *exported.reasoned_regions(features, counts),
        exported.encode_tokens(tokens["tokens"].numpy(), tokens["lengths"].numpy()),
    )
    for ours, models in zip(by_onnx, by_torch, strict=True):
        if halves:
            same = bool((_cosines(ours, models) >= LEAST_COSINE).all())
        else:
            same = np.allclose(ours, models, rtol=0, atol=TOLERANCE * np.abs(models).max())
        if not same:
            raise CheckpointError(
                f"the model cannot be exported in {exported.info.precision}: its encoders and the exported ones differ"
                f" by up to {np.abs(ours - models).max():.1g}; use it through torch."
            )


def _cosines(ours: FloatArray, wanted: FloatArray) -> FloatArray:
    """(B, ...) and (B, ...) -> (B,) cosine of each pair of rows, NaN where one is not finite."""
    ours, wanted = ours.reshape(len(ours), -1), wanted.reshape(len(wanted), -1)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(wanted, axis=1)
    return np.asarray((ours * wanted).sum(axis=1) / lengths)
