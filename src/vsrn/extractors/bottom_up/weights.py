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
from safetensors.torch import load_file
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vsrn.errors import CheckpointError
from vsrn.extractors.bottom_up.network import FEATURE_DIM, NUM_CELL_ANCHORS, NUM_CLASSES, BottomUpNetwork
from vsrn.extractors.bottom_up.proposals import caffe_anchors, default_anchors

Tensors = Mapping[str, torch.Tensor]

NORM_EPSILON = 1e-5
STAGES = {"backbone.res2": 3, "backbone.res3": 4, "backbone.res4": 23, "roi_heads.res5": 3}
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
RPN, PREDICTOR = "proposal_generator.rpn_head", "roi_heads.box_predictor"
BOX_DELTAS = f"{PREDICTOR}.bbox_pred"
NAMES_LISTED = 5


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
    theirs = _read_tensors(path)
    layers = key_table(_naming_of(path, theirs))
    _refuse_misfit(path, layers, theirs)
    caffe = len(theirs[f"{BOX_DELTAS}.weight"]) == 4 * (NUM_CLASSES + 1)
    ours: dict[str, torch.Tensor] = {}
    for layer in layers:
        if layer.ours:
            ours |= _converted(layer, theirs, caffe=caffe)
    ours["cell_anchors"] = theirs.get(ANCHORS, caffe_anchors() if caffe else default_anchors()).float()
    edge = 1.0 if caffe else 0.0
    return DetectorWeights(ours, edge, _fingerprint(ours, edge))


def load_network(weights: DetectorWeights) -> BottomUpNetwork:
    """The network with these weights, ready to run; it takes the tensors over."""
    with torch.device("meta"):
        network = BottomUpNetwork()
    network.load_state_dict(weights.tensors, assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors_only = path.suffix == ".safetensors"
        content: object = load_file(path) if tensors_only else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except Exception as error:
        # A foreign or damaged file makes its parser stumble over anything.
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not a file of tensors ({reason}); nothing else is unpickled, so save its state dict alone."
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} does not hold names and tensors only; save the detector's state dict alone.")
    return {str(name): tensor for name, tensor in content.items()}


def _naming_of(path: Path, theirs: Tensors) -> str:
    """The naming that a file has. Raises `CheckpointError` where it is none entirely, by the nearest one."""
    held = {name for name in theirs if not may_be_left_over(name)}
    wanted = {naming: {name for layer in key_table(naming) for name in layer.their_tensors()} for naming in NAMINGS}
    nearest = min(wanted, key=lambda naming: len(wanted[naming] ^ held))
    missing, left_over = sorted(wanted[nearest] - held), sorted(held - wanted[nearest])
    faults = [f"misses {_listed(missing)}"] * bool(missing) + [f"has {_listed(left_over)} left over"] * bool(left_over)
    if faults:
        raise CheckpointError(
            f"{path} is not bottom-up attention's ResNet-101 in {nearest}'s naming: it {' and '.join(faults)};"
            " docs/extractors.md says which files fit."
        )
    return nearest


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    # A stranger's names may hold anything; ours come out as they are.
    return ", ".join(repr(name[:100])[1:-1] for name in names[:NAMES_LISTED]) + more


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


def _refuse_misfit(path: Path, layers: list[Layer], theirs: Tensors) -> None:
    """Raise `CheckpointError` where a tensor has a shape that none of the layouts has, or is not finite."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in BottomUpNetwork().state_dict().items()}
    shapes: dict[str, set[tuple[int, ...]]] = {ANCHORS: {expected["cell_anchors"]}}
    for layer in layers:
        for tensor, name in zip(layer.kind.value, layer.their_tensors(), strict=True):
            shapes[name] = _shapes_of(layer, tensor, expected)
    for name in shapes.keys() & theirs.keys():
        if tuple(theirs[name].shape) not in shapes[name]:
            fitting = " or ".join(map(str, sorted(shapes[name])))
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(theirs[name].shape)}, not {fitting};"
                " only the ResNet-101 detector of 1,600 classes and 400 attributes fits."
            )
        if not bool(theirs[name].isfinite().all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers; get the file again.")


def _shapes_of(layer: Layer, tensor: str, expected: Mapping[str, tuple[int, ...]]) -> set[tuple[int, ...]]:
    """The shapes that one tensor of a layer may have in a file."""
    if not layer.ours:
        rest = (FEATURE_DIM,) * (tensor == "weight")
        return {(4 * NUM_CLASSES, *rest), (4 * (NUM_CLASSES + 1), *rest)}
    # Four numbers per channel normalise it, as many as there are biases once they are folded.
    rows, *others = expected[f"{layer.ours}.bias" if tensor.startswith("norm.") else f"{layer.ours}.{tensor}"]
    either = {rows, 2 * rows} if layer.ours == "rpn.objectness" else {rows}
    return {(number, *others) for number in either}


def _fingerprint(ours: Tensors, edge: float) -> str:
    digest = hashlib.sha256(f"edge {edge}".encode())
    for name in sorted(ours):
        digest.update(name.encode())
        digest.update(ours[name].contiguous().numpy().data)
    return digest.hexdigest()
