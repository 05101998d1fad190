"""ONNX graphs of our networks: traced by torch, stored as floats or halves; and the one of the extractor `grid`.

torch's newer exporter (`dynamo=True`) freezes the time axis of the caption encoder's GRU at the length of the example,
without a warning; the older one, which traces, keeps it free. This file asks for the older one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vsrn.errors import CheckpointError
from vsrn.files import write_atomically
from vsrn.onnx_files import HALF

if TYPE_CHECKING:
    from vsrn.extractors.grid import GridExtractor
    from vsrn.extractors.grid_onnx import OnnxGridExtractor

OPSET = 17
# Least cosine of what halves give with what the floats gave: of embeddings, and of the extractor's features.
LEAST_COSINE = 0.9999
# The operation that casts halves back takes about 115 bytes of a file.
FEWEST_HALVED = 128

Example = dict[str, torch.Tensor]


def trace(
    path: Path,
    network: nn.Module,
    inputs: Example,
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    *,
    whole: bool = False,
) -> Any:
    """Write a network as an ONNX graph of float32, and give that graph.

    inputs   example tensors by name
    outputs  names of what the network gives
    axes     of each input and output the axes whose size is free, by number
    whole    whether every weight is stored as it is and under its own name, none folded into another

    Raises `CheckpointError` where torch cannot export it.
    """
    import onnx  # noqa: PLC0415 - an optional package

    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        # It warns of itself and of sizes that might be fixed; every export is compared with the model at other sizes.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                tuple(inputs.values()),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: dict(axes[name]) for name in (*inputs, *outputs)},
                # A network in evaluation mode stays in it; what changes is that nothing is folded.
                training=mode.PRESERVE if whole else mode.EVAL,
                do_constant_folding=not whole,
            )
        except torch.onnx.OnnxExporterError as error:
            raise CheckpointError(
                f"the model cannot be exported by torch {torch.__version__}: {error}; use it through torch."
            ) from error
    return onnx.load(path)


def halve(graph: Any) -> None:
    """Replace weights, but the smallest, by float16 and a cast back to float32; beyond float16 they become infinite."""
    import onnx  # noqa: PLC0415 - an optional package

    for tensor in list(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= FEWEST_HALVED:
            graph.initializer.remove(tensor)
            with np.errstate(over="ignore"):
                halves = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            graph.initializer.append(onnx.numpy_helper.from_array(halves, f"{tensor.name}{HALF}"))
            cast = onnx.helper.make_node("Cast", [f"{tensor.name}{HALF}"], [tensor.name], to=onnx.TensorProto.FLOAT)
            # An ONNX graph lists an operation before those that read its output.
            graph.node.insert(0, cast)


def write_extractor(weights: Path, path: Path, *, halves: bool) -> str:
    """Write the grid's fine-tuned network, without the classifier, as ONNX; `OnnxGridExtractor` opens it.

    weights  as `GridExtractor` takes them
    halves   whether weights are rounded to float16; those that it holds exactly are stored so anyway

    Gives the fingerprint of the extractor with these weights, which is that of `GridExtractor` with the same. Raises
    `CheckpointError` where float16 does not hold them, or where the features change by it or by the export.
    """
    # What they need takes long to import, or is optional.
    import onnx  # noqa: PLC0415

    from vsrn.extractors.grid import GridExtractor, fine_tuned_network  # noqa: PLC0415
    from vsrn.extractors.grid_onnx import MAP, PIXELS, OnnxGridExtractor  # noqa: PLC0415

    network, kind = fine_tuned_network(weights)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    for name, tensor in tensors.items() if halves else ():
        tensor.copy_(tensor.half())
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{weights}: '{name}' is beyond float16; export without --half.")
    held = all(bool((tensor == tensor.half()).all()) for tensor in tensors.values())
    padded = dict[str, int]()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d:
            # timm's Conv2dSame adds rows for stride 2 by the size of its input: even, as sides are multiples of 32.
            assert module.stride == (2, 2)
            padded[f"{name}.weight"] = module.kernel_size[0] - 2
            module.__class__ = nn.Conv2d
    network.forward = network.forward_features
    axes = {PIXELS: {0: "photos", 2: "height", 3: "width"}, MAP: {0: "photos", 2: "rows", 3: "columns"}}
    model = trace(path, network, {PIXELS: torch.zeros(1, 3, kind.side, kind.side)}, [MAP], axes, whole=True)
    _finish(model, padded, network.num_features, kind.metadata)
    there = {tensor.name for tensor in model.graph.initializer}
    # Of equal weights torch writes one, and an operation that copies it; the file is to have all of them.
    for node in [node for node in model.graph.node if node.op_type == "Identity" and node.output[0] in tensors]:
        model.graph.node.remove(node)
    for name in tensors.keys() - there:
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensors[name].numpy(), name))
    if held:
        halve(model.graph)
    write_atomically(path, model.SerializeToString())
    exported = OnnxGridExtractor(path, "cpu")
    _check_same(GridExtractor(weights, "cpu"), exported, weights)
    return exported.fingerprint


def _finish(model: Any, padded: Mapping[str, int], features: int, metadata: dict[str, str]) -> None:
    """Put the rows and columns that stride 2 needs into the convolutions, and what else a traced graph lacks."""
    import onnx  # noqa: PLC0415 - an optional package

    for node in model.graph.node:
        node.name = ""
        more = padded.get(node.input[1]) if node.op_type == "Conv" else None
        if more is not None:
            for attribute in list(node.attribute):
                if attribute.name == "pads":
                    node.attribute.remove(attribute)
            # More of them at the end, as TensorFlow has it.
            pads = [more // 2, more // 2, more - more // 2, more - more // 2]
            node.attribute.append(onnx.helper.make_attribute("pads", pads))
    (output,) = model.graph.output
    output.type.tensor_type.shape.dim[1].dim_value = features
    onnx.helper.set_model_props(model, metadata)


def _check_same(before: GridExtractor, after: OnnxGridExtractor, weights: Path) -> None:
    """Raise `CheckpointError` unless an export gives the features that its weights gave, at any side."""
    for side in (before.kind.side, before.kind.side + 32):
        colours = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        noise = functional.interpolate(255 * colours, size=(side, side), mode="bilinear", align_corners=False)
        photo = noise[0].byte().permute(1, 2, 0).numpy()
        with torch.inference_mode():
            expected = before.grid_of(before.pixels([photo])).features[0].permute(1, 2, 0).flatten()
        found = torch.from_numpy(after.map_of(photo)).flatten()
        least = float(functional.cosine_similarity(expected, found, dim=0))
        if not least >= LEAST_COSINE:
            raise CheckpointError(
                f"the extractor's weights {weights} cannot be exported: features change to a cosine of {least:.4f};"
                " export without --half, or use the model through torch."
            )
