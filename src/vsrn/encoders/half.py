"""Fine-tuned weights of the grid's network as halves, for an exported folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from vsrn.errors import CheckpointError
from vsrn.extractors.grid import GridExtractor, read_fine_tuned
from vsrn.extractors.provenance import NAME
from vsrn.files import write_atomically
from vsrn.tensors import write_tensors

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


# Least cosine of the features of a photo by the weights as they were and as halves.
LEAST_COSINE = 0.9999


def halve_extractor(weights: Path, folder: Path) -> str:
    """Write what decides the grid's regions, without the classifier, as float16.

    Gives the fingerprint of the extractor that it has become; of weights that were halves before it is the same.
    Raises `CheckpointError` where the features change by it.
    """
    place = folder / f"{NAME}.safetensors"
    halves = {name: tensor.half() for name, tensor in read_fine_tuned(weights).items()}
    for name, tensor in halves.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{weights}: '{name}' is beyond float16; export without --half.")
    write_tensors(place, halves, {})
    whole, half = GridExtractor(weights), GridExtractor(place)
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
    """(photos, 3, side, side) scaled pixels of colours that flow into one another, as in a photo out of focus."""
    colours = torch.rand(photos, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return 2 * functional.interpolate(colours, size=(side, side), mode="bilinear", align_corners=False) - 1
