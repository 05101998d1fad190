"""A model -> a folder that answers queries without torch: `vsrn.encoders.onnx_backend` reads it."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vsrn.config import config_to_toml
from vsrn.data.splits import at_places, back_in_place, reading_places
from vsrn.data.vocabulary import START
from vsrn.encoders import onnx_backend
from vsrn.encoders.folding import fold, folded_layers
from vsrn.encoders.onnx_backend import EMBEDDINGS, MODEL_KEY, REGIONS, ExportInfo, OnnxEncoder, StoredPrecision
from vsrn.encoders.onnx_writing import LEAST_COSINE, Example, halve, trace, write_extractor
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.provenance import NAME, carry_names, carry_weights
from vsrn.files import new_folder, write_atomically
from vsrn.model.aggregators import mirrored_places
from vsrn.model.base import BaseModel, BaseTextEncoder
from vsrn.model.pretrained_text import PretrainedText
from vsrn.model.saved import StoredModel, model_fingerprint, write_model
from vsrn.model.vsrn import ImageEncoder, TextEncoder
from vsrn.tensors import write_tensors

# Largest difference from the model that a fp32 export may have, as a share of the largest number compared.
TOLERANCE = 1e-4
# An ONNX file is one protocol buffer, which cannot be larger; a little is left for the graph.
MOST_BYTES = 2**31 - 2**24


def export_onnx(stored: StoredModel, folder: Path, precision: StoredPrecision = "fp32") -> ExportInfo:
    """Write a model's encoders, vocabulary and config to a new folder that `OnnxEncoder` opens.

    precision  how weights are stored: "fp16" takes half the size, computing in float32 all the same

    The folder appears whole or not at all, and only after its encoders gave the model's own embeddings. Raises
    `CheckpointError` where the folder is taken or the model cannot be exported, and `ConfigError` where the package
    `onnx` is missing.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("exporting needs the package onnx; run `pip install '.[onnx]'` in the checkout.")
    check_free(folder)
    images, captions = _exportable(stored)
    config, model = stored.config.model, stored.model
    assert config.feature_dim is not None, "a model that was built knows its feature size"
    info = ExportInfo(
        model=model_fingerprint(stored),
        precision=precision,
        joint_dim=config.joint_dim,
        feature_dim=config.feature_dim,
        vocabulary=stored.vocabulary.fingerprint,
        extractor=stored.regions.extractor,
        extractor_fingerprint=stored.regions.fingerprint,
    )
    with new_folder(folder) as temporary, torch.no_grad():
        regions = _example_regions(info.feature_dim)
        write_graph(temporary / onnx_backend.IMAGE_FILE, fold(images), regions, [EMBEDDINGS, REGIONS], info)
        tokens = _example_tokens(len(stored.vocabulary))
        write_graph(temporary / onnx_backend.CAPTION_FILE, _traceable(captions), tokens, [EMBEDDINGS], info)
        write_atomically(temporary / onnx_backend.CONFIG_FILE, config_to_toml(stored.config).encode())
        write_atomically(temporary / onnx_backend.VOCABULARY_FILE, stored.vocabulary.to_json())
        if model.captioner is not None:
            dtype = torch.float32 if precision == "fp32" else torch.float16
            weights = {name: tensor.to(dtype) for name, tensor in model.captioner.state_dict().items()}
            held = f"what {str(dtype).removeprefix('torch.')} cannot; train it again, or store its weights as float32"
            _check_finite(weights, "captioner", held)
            write_tensors(temporary / onnx_backend.CAPTIONER_FILE, weights, {MODEL_KEY: info.model})
        weights_file = stored.extractor_weights
        if weights_file is not None and info.extractor == "grid" and weights_file.suffix != ".onnx":
            made_of = write_extractor(weights_file, temporary / f"{NAME}.onnx", halves=precision == "fp16")
            # As halves they may be the weights of another extractor.
            info = msgspec.structs.replace(info, extractor_fingerprint=made_of)
        elif weights_file is not None:
            carry_weights(weights_file, temporary)
        carry_names(stored.region_names, temporary)
        write_atomically(temporary / onnx_backend.INFO_FILE, msgspec.json.format(msgspec.json.encode(info), indent=1))
        _check_same(OnnxEncoder(temporary, threads=1), images, captions)
    return info


def export_model(stored: StoredModel[BaseModel], folder: Path) -> None:
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


def _exportable(stored: StoredModel) -> tuple[ImageEncoder, BaseTextEncoder]:
    """Copies of a model's encoders on the CPU, in evaluation mode. Raises `CheckpointError` where they are no good."""
    images, captions = stored.model.image_encoder, stored.model.caption_encoder
    if type(images) is not ImageEncoder or type(captions) not in (TextEncoder, PretrainedText):
        raise CheckpointError(
            f"a model of kind '{stored.config.model.kind}' with other encoders than vsrn's own for regions and captions"
            " cannot be exported; use it through torch."
        )
    for side, encoder in (("image", images), ("caption", captions)):
        _check_finite(encoder.state_dict(), f"{side}_encoder", "infinity; train it again")
        if sum(4 * tensor.numel() for tensor in encoder.state_dict().values()) > MOST_BYTES:
            raise CheckpointError(
                f"the model cannot be exported: its {side} encoder is above the 2 GB of an ONNX file;"
                " use it through torch."
            )
    return copy.deepcopy(images).cpu().float().eval(), copy.deepcopy(captions).cpu().float().eval()


def _check_finite(tensors: Mapping[str, torch.Tensor], part: str, remedy: str) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"the model cannot be exported: {part}.{name} holds NaN or {remedy}.")


def _example_regions(feature_dim: int, images: int = 2, regions: int = 3, fewest: int = 1) -> Example:
    """Random regions; the first image has the fewest real ones, the last has all."""
    features = torch.randn(images, regions, feature_dim, generator=torch.Generator().manual_seed(0))
    return {"features": features, "counts": torch.linspace(fewest, regions, images).long()}


def _example_tokens(vocabulary_size: int, captions: int = 2, tokens: int = 4) -> Example:
    """Random tokens; the first caption has one, the last has all."""
    ids = torch.randint(START, vocabulary_size, (captions, tokens), generator=torch.Generator().manual_seed(0))
    return {"tokens": ids, "lengths": torch.linspace(1, tokens, captions).long()}


def _check_same(exported: OnnxEncoder, images: nn.Module, captions: nn.Module) -> None:
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
            one, other = torch.from_numpy(ours).flatten(1), torch.from_numpy(models).flatten(1)
            same = bool((functional.cosine_similarity(one, other) >= LEAST_COSINE).all())
        else:
            same = np.allclose(ours, models, rtol=0, atol=TOLERANCE * np.abs(models).max())
        if not same:
            raise CheckpointError(
                f"the model cannot be exported in {exported.info.precision}: its encoders and the exported ones differ"
                f" by up to {np.abs(ours - models).max():.1g}; use it through torch."
            )


class ExportableText(TextEncoder):
    """The caption encoder in operations of ONNX: it reads past the end instead of packing.

    A GRU that reads forwards cannot be changed by what follows a caption's end. The backward direction is a forward GRU
    that reads captions mirrored.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder.config, encoder.embedding.num_embeddings)
        self.load_state_dict(encoder.state_dict())
        layers = range(self.gru.num_layers * self.gru.bidirectional)
        self.ahead = nn.ModuleList(_one_direction(self.gru, f"l{layer}") for layer in layers)
        self.back = nn.ModuleList(_one_direction(self.gru, f"l{layer}_reverse") for layer in layers)

    def states(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each -> (B, T, D or 2D) the GRU's outputs; any after the end."""
        states: torch.Tensor = self.embedding(tokens)
        if not self.gru.bidirectional:
            return self.gru(states)[0]
        mirrored = mirrored_places(lengths, tokens.shape[1])[..., None]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            backwards, _ = back(states.gather(1, mirrored.expand(-1, -1, states.shape[2])))
            backwards = backwards.gather(1, mirrored.expand(-1, -1, backwards.shape[2]))
            states = torch.cat([ahead(states)[0], backwards], dim=-1)
        return states


def _traceable(encoder: BaseTextEncoder) -> nn.Module:
    """A caption encoder in operations of ONNX, with the same embeddings."""
    if isinstance(encoder, TextEncoder):
        return ExportableText(encoder)
    assert isinstance(encoder, PretrainedText), "others are refused before"
    folded = copy.copy(encoder)
    folded._modules = dict(encoder._modules)
    folded.reasoning = folded_layers(encoder.reasoning)
    return folded


def _one_direction(gru: nn.GRU, name: str) -> nn.GRU:
    """One direction of one layer, named as torch does ("l0", "l1_reverse"), as a GRU of its own."""
    weights = {kind: getattr(gru, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    single = nn.GRU(weights["weight_ih"].shape[1], gru.hidden_size, batch_first=True)
    single.load_state_dict({f"{kind}_l0": tensor for kind, tensor in weights.items()})
    return single


def write_graph(path: Path, encoder: nn.Module, inputs: Example, outputs: Sequence[str], info: ExportInfo) -> None:
    """Write an encoder as an ONNX graph that names its model, in the precision that `info` asks for.

    inputs, outputs  as `trace` takes them; the graph takes any number of rows and of regions or tokens

    Raises `CheckpointError` where torch cannot export it. Weights beyond float16 become infinite.
    """
    import onnx  # noqa: PLC0415 - an optional package

    axes = {name: {axis: f"{name}_{axis}" for axis in range(min(2, tensor.dim()))} for name, tensor in inputs.items()}
    axes |= {EMBEDDINGS: {0: "rows"}, REGIONS: {0: "rows", 1: "regions"}}
    graph = trace(path, encoder, inputs, outputs, axes)
    onnx.helper.set_model_props(graph, {MODEL_KEY: info.model})
    # Tracing leaves the embedding's size open.
    for output in graph.graph.output:
        output.type.tensor_type.shape.dim[-1].dim_value = info.joint_dim
    if info.precision == "fp16":
        halve(graph.graph)
    write_atomically(path, graph.SerializeToString())
