"""ONNX encoders with their weights as halves: half the size on disk, widened once when read, computed as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from vsrn.files import write_atomically

# Biases and the like weigh nothing, and are added to what the large products give.
FEWEST_HALVED = 1024


def halve(path: Path) -> None:
    """Replace an ONNX encoder by one whose weights are float16; its inputs and outputs stay the same.

    What is beyond float16 becomes infinite, so what the encoder says must be looked at afterwards.
    """
    model = onnx.load(path)
    graph = model.graph
    for tensor in list(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= FEWEST_HALVED:
            graph.initializer.remove(tensor)
            with np.errstate(over="ignore"):
                halves = numpy_helper.to_array(tensor).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(halves, f"{tensor.name}_half"))
            widened = onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT)
            # Operations must stand behind what they read.
            graph.node.insert(0, widened)
    write_atomically(path, model.SerializeToString())
