"""The recorded detector's weights, from their names alone, in the namings and layouts that people have."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsrn.extractors.bottom_up.weights import ANCHORS, BOX_DELTAS, PREDICTOR, RPN

GOLDEN = Path(__file__).parents[1] / "golden" / "frcnn"

# What the published files call differently, as facts, so that the tables of the package are not their own judge.
MILVLG_NAMES = {"cls_embedding": "cls_embed", "fc_attr": "attr_linear1", "attr_score": "attr_linear2"}


@functools.cache
def recorded_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the Hugging Face file and its shape."""
    lines = (GOLDEN / "keys_hf.tsv").read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {name: tuple(int(size) for size in shape.split(",") if size) for name, shape in pairs}


@functools.cache
def recording() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "reference.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@functools.cache
def hugging_face_file() -> dict[str, torch.Tensor]:
    """What was loaded when the recording was made."""
    spec = importlib.util.spec_from_file_location("frcnn_seeded", GOLDEN / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    rule: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    tensors = {}
    for name, shape in recorded_shapes().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
        elif name == ANCHORS:
            tensors[name] = recording()["cell_anchors"]
        else:
            tensors[name] = torch.from_numpy(rule.seeded(name, shape))
    return tensors


def milvlg_name(name: str) -> str:
    """A Hugging Face name -> MILVLG's name of the same tensor."""
    *front, layer, tensor = name.split(".")
    return ".".join([*front, MILVLG_NAMES.get(layer, layer), tensor])


def milvlg_file(*, caffe: bool) -> dict[str, torch.Tensor]:
    """The same detector in MILVLG's naming, with two logits an anchor; `caffe` puts the background first."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in hugging_face_file().items():
        if name.startswith(f"{RPN}.objectness_logits"):
            against = torch.randn(tensor.shape, generator=generator)
            tensors[name] = torch.cat([against, against + tensor])
        elif caffe and name.startswith(BOX_DELTAS):
            tensors[name] = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        elif caffe and name.startswith((f"{PREDICTOR}.cls_", f"{PREDICTOR}.attr_")):
            tensors[milvlg_name(name)] = torch.cat([tensor[-1:], tensor[:-1]])
        elif not name.endswith("num_batches_tracked"):
            tensors[milvlg_name(name)] = tensor
    return tensors
