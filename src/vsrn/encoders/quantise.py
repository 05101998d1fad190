"""ONNX encoders with their weights as bytes: a quarter of the size, and products of bytes where there are kernels.

onnxruntime multiplies bytes in `MatMul` and `Gemm`, scaling activations as they come. It has no GRU of bytes:
there, and in the word embedding, bytes are only how weights rest on disk, one scale a row, widened when read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from vsrn.data.region_store import FloatArray
from vsrn.files import write_atomically

# Which inputs of an operation are weights to store as bytes, and the axis whose rows have a scale each.
RESTING = {"GRU": ((1, 1), (2, 1)), "Gather": ((0, 0),)}


def quantise(path: Path) -> None:
    """Replace an ONNX encoder by one whose weights are bytes; its inputs and outputs stay the same."""
    with _quantiser_noise_silenced():
        quantize_dynamic(
            path,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_products_with_vectors(onnx.load(path).graph),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Without instructions for bytes, sums of two full-range products overflow 16 bits.
            reduce_range=True,
        )
    model = onnx.load(path)
    _rest_as_bytes(model.graph)
    write_atomically(path, model.SerializeToString())


def _products_with_vectors(graph: onnx.GraphProto) -> list[str]:
    """Names of products that onnxruntime's byte kernels refuse, and that have next to no weights to save."""
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in vectors]


def _rest_as_bytes(graph: onnx.GraphProto) -> None:
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    widened = []
    for node in graph.node:
        for place, axis in RESTING.get(node.op_type, ()):
            name = node.input[place]
            if name in weights:
                widened.append(_as_bytes(graph, weights.pop(name), axis))
    # Operations must stand behind what they read.
    for node in reversed(widened):
        graph.node.insert(0, node)


def _as_bytes(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> onnx.NodeProto:
    """Store a weight as bytes; the node gives it back under its old name."""
    name = tensor.name
    rounded, scales = round_to_bytes(numpy_helper.to_array(tensor), axis)
    graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_bytes"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
    return onnx.helper.make_node("DequantizeLinear", [f"{name}_bytes", f"{name}_scales"], [name], axis=axis)


def round_to_bytes(weights: FloatArray, axis: int) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Weights -> int8 of the same shape, and a scale for each place along `axis`: weights ~ int8 * scale.

    >>> round_to_bytes(np.array([[1.0, -0.5], [0.0, 0.0]], dtype=np.float32), axis=0)[0]
    array([[127, -64],
           [  0,   0]], dtype=int8)
    """
    others = tuple(other for other in range(weights.ndim) if other != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales.reshape(-1)


@contextlib.contextmanager
def _quantiser_noise_silenced() -> Iterator[None]:
    """Without its advice to preprocess graphs, which traced ones do not need."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
