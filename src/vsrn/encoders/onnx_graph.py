"""The encoders as ONNX graphs: rewritten in operations that ONNX has, traced, and stored as floats or halves.

torch's newer exporter (`dynamo=True`) freezes the time axis of the caption encoder's GRU at the length of the
example, without a warning; the older one, which traces, keeps it free. This file asks for the older one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from vsrn.encoders.folding import fold
from vsrn.encoders.onnx_backend import EMBEDDINGS, MODEL_KEY, REGIONS, ExportInfo
from vsrn.errors import CheckpointError
from vsrn.extractors.grid import GridExtractor, read_fine_tuned
from vsrn.extractors.provenance import NAME
from vsrn.files import write_atomically
from vsrn.model.aggregators import GlobalSemanticReasoning, mirrored_places
from vsrn.model.vsrn import ImageEncoder, TextEncoder
from vsrn.tensors import write_tensors

OPSET = 17
# Least cosine of the features of a photo by the grid's weights as they were and as halves.
LEAST_COSINE = 0.9999
# Smaller tensors, such as biases, save next to nothing as halves.
FEWEST_HALVED = 1024

Example = dict[str, torch.Tensor]


class ExportableImages(nn.Module):
    """Features and counts -> embeddings and reasoned regions: the image encoder, folded, in operations of ONNX."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = fold(encoder)
        if isinstance(self.encoder.aggregator, GlobalSemanticReasoning):
            self.encoder.aggregator = _LastRegion(self.encoder.aggregator.gru)

    def forward(self, features: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, F) features, (B,) real regions of each -> (B, D), (B, N, D)."""
        encoded = self.encoder(features, counts)
        return encoded.embeddings, encoded.reasoned_regions


class ExportableCaptions(nn.Module):
    """Tokens and lengths -> embeddings: the caption encoder, which reads past the end instead of packing."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        gru = encoder.gru
        self.both_ways = nn.ModuleList(_BothWays(gru, layer) for layer in range(gru.num_layers * gru.bidirectional))

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each -> (B, D)."""
        states = self.encoder.embedding(tokens)
        if self.encoder.gru.bidirectional:
            mirrored = mirrored_places(lengths, tokens.shape[1])
            for layer in self.both_ways:
                states = layer(states, mirrored)
        else:
            states, _ = self.encoder.gru(states)
        if self.encoder.aggregator is not None:
            mask = torch.arange(tokens.shape[1]) < lengths[:, None]
            return self.encoder.embed(self.encoder.aggregator(self.encoder.mean_of_directions(states), mask))
        last = _state_at(states, lengths - 1)
        if self.encoder.gru.bidirectional:
            dim = self.encoder.gru.hidden_size
            last = (last[:, :dim] + states[:, 0, dim:]) / 2
        return self.encoder.embed(last)


class _LastRegion(nn.Module):
    """`GlobalSemanticReasoning` on masked regions, without indexing by tensors."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, regions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(regions)
        return _state_at(states, mask.sum(dim=1) - 1)


class _BothWays(nn.Module):
    """One layer of a bidirectional GRU; the backward direction is a forward GRU that reads captions mirrored."""

    def __init__(self, gru: nn.GRU, layer: int) -> None:
        super().__init__()
        self.ahead, self.back = (_one_direction(gru, f"l{layer}{suffix}") for suffix in ("", "_reverse"))

    def forward(self, inputs: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """(B, T, I) inputs, (B, T) `mirrored_places` -> (B, T, 2D) states."""
        ahead, _ = self.ahead(inputs)
        back, _ = self.back(_at(inputs, mirrored))
        return torch.cat([ahead, _at(back, mirrored)], dim=-1)


def _one_direction(gru: nn.GRU, name: str) -> nn.GRU:
    """One direction of one layer, named as torch does ("l0", "l1_reverse"), as a GRU of its own."""
    weights = {kind: getattr(gru, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    single = nn.GRU(weights["weight_ih"].shape[1], gru.hidden_size, batch_first=True)
    single.load_state_dict({f"{kind}_l0": tensor for kind, tensor in weights.items()})
    return single


def _at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B, P) places -> (B, P, D)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))


def _state_at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B,) places -> (B, D). A GRU reads forwards: what follows a place cannot change its state."""
    return _at(states, places[:, None])[:, 0]


def write_graph(path: Path, encoder: nn.Module, inputs: Example, outputs: Sequence[str], info: ExportInfo) -> None:
    """Write an encoder as an ONNX graph that names its model, in the precision that `info` asks for.

    inputs   example tensors by name; the graph takes any number of rows and of regions or tokens
    outputs  names of what the encoder gives

    Raises `CheckpointError` where torch cannot export it. Weights beyond float16 become infinite.
    """

    _trace(path, encoder, inputs, outputs)
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {MODEL_KEY: info.model})
    # Tracing leaves the embedding's size open.
    for output in graph.graph.output:
        output.type.tensor_type.shape.dim[-1].dim_value = info.joint_dim
    if info.precision == "fp16":
        _halve(graph.graph)
    write_atomically(path, graph.SerializeToString())


def _trace(path: Path, encoder: nn.Module, inputs: Example, outputs: Sequence[str]) -> None:
    """Write an encoder as an ONNX graph in which the number of rows and of regions or tokens is free."""
    axes = {name: {axis: f"{name}_{axis}" for axis in range(min(2, tensor.dim()))} for name, tensor in inputs.items()}
    axes |= {EMBEDDINGS: {0: "rows"}, REGIONS: {0: "rows", 1: "regions"}}
    with _exporter_noise_silenced(), _transposes_known():
        try:
            torch.onnx.export(
                encoder,
                tuple(inputs.values()),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: axes[name] for name in (*inputs, *outputs)},
            )
        except torch.onnx.OnnxExporterError as error:
            raise CheckpointError(
                f"the model cannot be exported by torch {torch.__version__}: {error}; use it through torch."
            ) from error


@contextlib.contextmanager
def _transposes_known() -> Iterator[None]:
    """Teach the exporter `tensor.mT`, the one operation of the encoders that it lacks."""

    def swap_last_two(graph: Any, tensor: Any) -> Any:
        axes = list(range(tensor.type().dim()))
        return graph.op("Transpose", tensor, perm_i=[*axes[:-2], axes[-1], axes[-2]])

    torch.onnx.register_custom_op_symbolic("aten::mT", swap_last_two, OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::mT", OPSET)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _exporter_noise_silenced() -> Iterator[None]:
    """Hide the exporter's warnings about itself and about torch's own GRU; those about our code stay."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.onnx")
        # The GRU compares sizes in Python; they are the model's, the same for every input.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", module=r"torch\.nn\.modules\.rnn")
        # The first state is made of zeros for as many rows as there are; tests run other numbers of rows.
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1", UserWarning)
        yield


def _halve(graph: onnx.GraphProto) -> None:
    """Replace large weights by float16 and a cast back to float32; what is beyond float16 becomes infinite."""
    for tensor in list(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= FEWEST_HALVED:
            graph.initializer.remove(tensor)
            with np.errstate(over="ignore"):
                halves = numpy_helper.to_array(tensor).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(halves, f"{tensor.name}_half"))
            cast = onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT)
            # An ONNX graph lists an operation before those that read its output.
            graph.node.insert(0, cast)


def halve_extractor(weights: Path, folder: Path) -> str:
    """Write the grid's fine-tuned weights, without the classifier, to a folder as float16.

    Gives the fingerprint of the extractor with these weights; it is the same where they were halves before. Raises
    `CheckpointError` where the features change by it.
    """
    place = folder / f"{NAME}.safetensors"
    halves = {name: tensor.half() for name, tensor in read_fine_tuned(weights).items()}
    for name, tensor in halves.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{weights}: '{name}' is beyond float16; export without --half.")
    write_tensors(place, halves, {})
    whole, half = GridExtractor(weights, "cpu"), GridExtractor(place, "cpu")
    photos = _soft_noise(2, whole.photo_size)
    with torch.inference_mode():
        before, after = whole.features(photos).flatten(1), half.features(photos).flatten(1)
    least = float(functional.cosine_similarity(before, after).min())
    if not least >= LEAST_COSINE:
        raise CheckpointError(
            f"the extractor's weights {weights} cannot be stored as float16: features change to a cosine of"
            f" {least:.4f}; export without --half."
        )
    return half.fingerprint


def _soft_noise(photos: int, side: int) -> torch.Tensor:
    """(photos, 3, side, side) scaled pixels of smooth random colours, as in a photo out of focus."""
    colours = torch.rand(photos, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return 2 * functional.interpolate(colours, size=(side, side), mode="bilinear", align_corners=False) - 1
