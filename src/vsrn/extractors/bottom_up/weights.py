"""The detector's published weights -> ours, whichever of two namings and two layouts a file has.

A *naming* is what the tensors are called: Hugging Face's `frcnn-vg-finetuned` or MILVLG's `bua-caffe-frcn-r101`.
A *layout* is how the classes lie in them, and a file's own shapes tell it:

    4 x 1,600 rows of box deltas   background last, boxes end where their last pixel ends   (Detectron2)
    4 x 1,601 rows of box deltas   background first, boxes end on their last pixel          (Caffe)
    12 channels of objectness      one logit per anchor
    24 channels of objectness      a softmax of two: 12 logits against, then 12 logits for an object

`read_weights` gives one layout: background last, one logit per anchor, batch normalisation folded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vsrn.extractors.bottom_up.network import (
    FEATURE_DIM,
    NUM_CELL_ANCHORS,
    NUM_CLASSES,
    BottomUpNetwork,
    caffe_anchors,
    default_anchors,
)
from vsrn.tensors import check_fit, read_tensor_file

Tensors = Mapping[str, torch.Tensor]

NORM_EPSILON = 1e-5
NORM_TENSORS = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
RPN, PREDICTOR = "proposal_generator.rpn_head", "roi_heads.box_predictor"
# Regions are the proposals as they are: nothing asks how a class would move their edges.
BOX_DELTAS = f"{PREDICTOR}.bbox_pred"
# Where the published files have the parts of the network; a part that is not named here is below `PREDICTOR`.
PLACES = {
    "stem": "backbone.stem.conv1",
    **{stage: f"backbone.{stage}" for stage in ("res2", "res3", "res4")},
    "res5": "roi_heads.res5",
    "rpn.conv": f"{RPN}.conv",
    "rpn.objectness": f"{RPN}.objectness_logits",
    "rpn.deltas": f"{RPN}.anchor_deltas",
    "class_score": f"{PREDICTOR}.cls_score",
}
# What is called differently, below `PREDICTOR`.
NAMINGS = {
    "Hugging Face": {
        "class_embedding": "cls_embedding",
        "attribute_hidden": "fc_attr",
        "attribute_score": "attr_score",
    },
    "MILVLG": {
        "class_embedding": "cls_embed",
        "attribute_hidden": "attr_linear1",
        "attribute_score": "attr_linear2",
    },
}


@dataclass(frozen=True)
class DetectorWeights:
    """What a file held.

    network      with these weights, ready to run
    edge         1.0 where these weights count a box's last pixel in, else 0.0
    fingerprint  SHA-256 (hex) of both, the same for the same weights in another naming
    """

    network: BottomUpNetwork
    edge: float
    fingerprint: str


def key_table(naming: str) -> dict[str, list[str]]:
    """The names of every layer's tensors in files of this naming, by the layer's name in the network.

    The weight comes first, then the bias or, where batch normalisation follows the layer, its four tensors.
    """
    with torch.device("meta"):
        ours = [name.removesuffix(".weight") for name in BottomUpNetwork().state_dict() if name.endswith(".weight")]
    table = {}
    for layer in ours:
        part = layer if layer in PLACES else layer.partition(".")[0]
        theirs = PLACES.get(part) or f"{PREDICTOR}.{NAMINGS[naming][part]}"
        others: tuple[str, ...] = () if layer == "class_embedding" else ("bias",)
        if part == "stem" or part.startswith("res"):
            others = NORM_TENSORS
        table[layer] = [f"{theirs}{layer.removeprefix(part)}.{tensor}" for tensor in ("weight", *others)]
    return table


def may_be_left_over(name: str) -> bool:
    """Whether a file may hold this tensor without our needing it: counters of training, copies of constants."""
    return name.endswith(".num_batches_tracked") or name in (ANCHORS, "pixel_mean", "pixel_std")


def read_weights(path: Path) -> DetectorWeights:
    """Read a published file: `.safetensors`, or what `torch.save` wrote, of which only tensors are unpickled.

    Raises `CheckpointError` where the file cannot be read, lacks tensors or has others, all of them named.
    """
    read = read_tensor_file(path)
    theirs = {name: tensor for name, tensor in read.items() if not may_be_left_over(name)}
    naming = _naming_of(theirs)
    table = key_table(naming)
    caffe = _rows(theirs, BOX_DELTAS) == 4 * (NUM_CLASSES + 1)
    two_logits = _rows(theirs, f"{RPN}.objectness_logits") == 2 * NUM_CELL_ANCHORS
    anchors = caffe_anchors() if caffe else default_anchors()
    wanted = _wanted(table, caffe=caffe, two_logits=two_logits)
    if ANCHORS in read:
        theirs[ANCHORS], wanted[ANCHORS] = read[ANCHORS], anchors
    remedy = (
        f"only bottom-up attention's ResNet-101 of 1,600 classes and 400 attributes fits, here in {naming}'s naming"
        " (docs/extractors.md)."
    )
    check_fit(theirs, wanted, path, remedy)
    ours: dict[str, torch.Tensor] = {}
    for layer, names in table.items():
        ours |= _converted(layer, [theirs[name].float() for name in names], caffe=caffe)
    ours["cell_anchors"] = theirs.get(ANCHORS, anchors).float()
    edge = 1.0 if caffe else 0.0
    fingerprint = _fingerprint(ours, edge)
    with torch.device("meta"):
        network = BottomUpNetwork()
    network.load_state_dict(ours, assign=True)
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return DetectorWeights(network, edge, fingerprint)


def _rows(tensors: Tensors, layer: str) -> int:
    weight = tensors.get(f"{layer}.weight")
    return 0 if weight is None or not weight.ndim else len(weight)


def _naming_of(theirs: Tensors) -> str:
    """The naming whose names are nearest to those of a file."""
    wanted = {naming: {name for names in key_table(naming).values() for name in names} for naming in NAMINGS}
    return min(wanted, key=lambda naming: len(wanted[naming] ^ theirs.keys()))


def _converted(layer: str, theirs: list[torch.Tensor], *, caffe: bool) -> dict[str, torch.Tensor]:
    """The tensors of one layer under our names."""
    weight, *others = theirs
    if len(others) == len(NORM_TENSORS):
        scale, shift, mean, variance = others
        weight, bias = fuse_conv_bn_weights(weight, None, mean, variance, NORM_EPSILON, scale, shift)
        weight, others = weight.data, [bias.data]
    tensors = dict(zip(("weight", "bias"), (weight, *others), strict=False))
    if layer == "rpn.objectness" and len(weight) == 2 * NUM_CELL_ANCHORS:
        # The sigmoid of a difference of two logits is their softmax.
        tensors = {name: tensor[NUM_CELL_ANCHORS:] - tensor[:NUM_CELL_ANCHORS] for name, tensor in tensors.items()}
    if caffe and layer in ("class_score", "class_embedding", "attribute_score"):
        tensors = {name: tensor.roll(-1, dims=0) for name, tensor in tensors.items()}
    return {f"{layer}.{name}": tensor for name, tensor in tensors.items()}


def _wanted(table: Mapping[str, list[str]], *, caffe: bool, two_logits: bool) -> dict[str, torch.Tensor]:
    """Every tensor of a file in one of the layouts, on the device "meta": for its shape."""
    with torch.device("meta"):
        ours = BottomUpNetwork().state_dict()
        box_deltas = torch.empty(4 * (NUM_CLASSES + caffe), FEATURE_DIM)
        wanted = {f"{BOX_DELTAS}.weight": box_deltas, f"{BOX_DELTAS}.bias": box_deltas[:, 0]}
        for layer, (weight, *others) in table.items():
            like = ours[f"{layer}.weight"]
            rows = 2 * NUM_CELL_ANCHORS if two_logits and layer == "rpn.objectness" else len(like)
            wanted[weight] = torch.empty(rows, *like.shape[1:])
            # A bias, or numbers that normalise a channel each.
            wanted |= {name: torch.empty(rows) for name in others}
    return wanted


def _fingerprint(ours: Tensors, edge: float) -> str:
    digest = hashlib.sha256(f"edge {edge}".encode())
    for name in sorted(ours):
        digest.update(name.encode())
        digest.update(ours[name].contiguous().numpy().data)
    return digest.hexdigest()
