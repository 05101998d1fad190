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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
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
STAGES = {"backbone.res2": 3, "backbone.res3": 4, "backbone.res4": 23, "roi_heads.res5": 3}
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
RPN, PREDICTOR = "proposal_generator.rpn_head", "roi_heads.box_predictor"
BOX_DELTAS = f"{PREDICTOR}.bbox_pred"


class Kind(Enum):
    """Which tensors a layer has in a published file."""

    NORMALISED = ("weight", *(f"norm.{name}" for name in NORM_TENSORS))
    PLAIN = ("weight", "bias")
    TABLE = ("weight",)


@dataclass(frozen=True)
class Layer:
    """A layer by its name in the network and in a published file; `ours` is empty where it is not needed."""

    ours: str
    theirs: str
    kind: Kind

    def their_tensors(self) -> list[str]:
        """Names of its tensors in the file."""
        return [f"{self.theirs}.{tensor}" for tensor in self.kind.value]


# The last part of the names of the layers that read a box's features.
NAMINGS = {
    "Hugging Face": {
        "class_score": "cls_score",
        "class_embedding": "cls_embedding",
        "attribute_hidden": "fc_attr",
        "attribute_score": "attr_score",
    },
    "MILVLG": {
        "class_score": "cls_score",
        "class_embedding": "cls_embed",
        "attribute_hidden": "attr_linear1",
        "attribute_score": "attr_linear2",
    },
}


@dataclass(frozen=True)
class DetectorWeights:
    """What a file held, as our network wants it.

    tensors      `BottomUpNetwork.state_dict()`
    edge         1.0 where these weights count a box's last pixel in, else 0.0
    fingerprint  SHA-256 (hex) of both, the same for the same weights in another naming
    """

    tensors: dict[str, torch.Tensor]
    edge: float
    fingerprint: str


def key_table(naming: str) -> list[Layer]:
    """Every layer of the detector, once, by its name in the network and in files of this naming."""
    return [
        Layer("stem", "backbone.stem.conv1", Kind.NORMALISED),
        *_residual_layers(),
        Layer("rpn.conv", f"{RPN}.conv", Kind.PLAIN),
        Layer("rpn.objectness", f"{RPN}.objectness_logits", Kind.PLAIN),
        Layer("rpn.deltas", f"{RPN}.anchor_deltas", Kind.PLAIN),
        # Regions are the proposals as they are: nothing asks how a class would move their edges.
        Layer("", BOX_DELTAS, Kind.PLAIN),
        *(
            Layer(ours, f"{PREDICTOR}.{theirs}", Kind.TABLE if ours == "class_embedding" else Kind.PLAIN)
            for ours, theirs in NAMINGS[naming].items()
        ),
    ]


def _residual_layers() -> Iterator[Layer]:
    for stage, blocks in STAGES.items():
        for block in range(blocks):
            for conv in ("shortcut",) * (block == 0) + ("conv1", "conv2", "conv3"):
                ours = f"{stage.rpartition('.')[2]}.{block}.{conv}"
                yield Layer(ours, f"{stage}.{block}.{conv}", Kind.NORMALISED)


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
    layers = key_table(naming)
    caffe = _rows(theirs, BOX_DELTAS) == 4 * (NUM_CLASSES + 1)
    two_logits = _rows(theirs, f"{RPN}.objectness_logits") == 2 * NUM_CELL_ANCHORS
    anchors = caffe_anchors() if caffe else default_anchors()
    wanted = dict(_wanted(layers, caffe=caffe, two_logits=two_logits))
    if ANCHORS in read:
        theirs[ANCHORS], wanted[ANCHORS] = read[ANCHORS], anchors
    remedy = (
        f"only bottom-up attention's ResNet-101 of 1,600 classes and 400 attributes fits, here in {naming}'s naming"
        " (docs/extractors.md)."
    )
    check_fit(theirs, wanted, path, remedy)
    ours: dict[str, torch.Tensor] = {}
    for layer in layers:
        if layer.ours:
            ours |= _converted(layer, theirs, caffe=caffe)
    ours["cell_anchors"] = theirs.get(ANCHORS, anchors).float()
    edge = 1.0 if caffe else 0.0
    return DetectorWeights(ours, edge, _fingerprint(ours, edge))


def load_network(weights: DetectorWeights) -> BottomUpNetwork:
    """The network with these weights, ready to run; it takes the tensors over."""
    with torch.device("meta"):
        network = BottomUpNetwork()
    network.load_state_dict(weights.tensors, assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _rows(tensors: Tensors, layer: str) -> int:
    weight = tensors.get(f"{layer}.weight")
    return 0 if weight is None or not weight.ndim else len(weight)


def _naming_of(theirs: Tensors) -> str:
    """The naming whose names are nearest to those of a file."""
    wanted = {naming: {name for layer in key_table(naming) for name in layer.their_tensors()} for naming in NAMINGS}
    return min(wanted, key=lambda naming: len(wanted[naming] ^ theirs.keys()))


def _converted(layer: Layer, theirs: Tensors, *, caffe: bool) -> dict[str, torch.Tensor]:
    """The tensors of one layer under our names."""
    weight, *others = (theirs[name].float() for name in layer.their_tensors())
    if layer.kind is Kind.NORMALISED:
        scale, shift, mean, variance = others
        weight, bias = fuse_conv_bn_weights(weight, None, mean, variance, NORM_EPSILON, scale, shift)
        tensors = {"weight": weight.data, "bias": bias.data}
    else:
        tensors = dict(zip(layer.kind.value, (weight, *others), strict=True))
    if layer.ours == "rpn.objectness" and len(weight) == 2 * NUM_CELL_ANCHORS:
        # The sigmoid of a difference of two logits is their softmax.
        tensors = {name: tensor[NUM_CELL_ANCHORS:] - tensor[:NUM_CELL_ANCHORS] for name, tensor in tensors.items()}
    if caffe and layer.ours in ("class_score", "class_embedding", "attribute_score"):
        tensors = {name: tensor.roll(-1, dims=0) for name, tensor in tensors.items()}
    return {f"{layer.ours}.{name}": tensor for name, tensor in tensors.items()}


def _wanted(layers: list[Layer], *, caffe: bool, two_logits: bool) -> Tensors:
    """Every tensor of a file in one of the layouts, on the device "meta": for its shape."""
    with torch.device("meta"):
        ours = BottomUpNetwork().state_dict()
        shapes = {"rpn.objectness": 2 * NUM_CELL_ANCHORS} if two_logits else {}
        wanted = {}
        for layer in layers:
            for tensor, name in zip(layer.kind.value, layer.their_tensors(), strict=True):
                if not layer.ours:
                    rest = (FEATURE_DIM,) * (tensor == "weight")
                    wanted[name] = torch.empty(4 * (NUM_CLASSES + caffe), *rest)
                    continue
                # Four numbers per channel normalise it, as many as there are biases once they are folded.
                like = ours[f"{layer.ours}.bias" if tensor.startswith("norm.") else f"{layer.ours}.{tensor}"]
                wanted[name] = torch.empty(shapes.get(layer.ours, len(like)), *like.shape[1:])
        return wanted


def _fingerprint(ours: Tensors, edge: float) -> str:
    digest = hashlib.sha256(f"edge {edge}".encode())
    for name in sorted(ours):
        digest.update(name.encode())
        digest.update(ours[name].contiguous().numpy().data)
    return digest.hexdigest()
