"""The extractor `grid` with fine-tuned weights, without torch: an exported network, run by onnxruntime on the CPU.

`vsrn export --onnx` writes the file. It holds the weights as `vsrn.extractors.grid` reads them and the same operations,
so regions agree to rounding, and the fingerprint of equal weights is the same.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from vsrn.data.photo_splits import processors
from vsrn.data.regions import RegionNames, Regions
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.base import ExtractorFiles, Prepared, RegionExtractor, check_no_names, may_be_gpu
from vsrn.metrics import FloatArray, IntArray
from vsrn.onnx_files import first_line, open_session, read_content

NAME = "grid"
NETWORKS = tuple(f"tf_efficientnet_lite{number}" for number in range(5))
# What the networks halve five times.
SIDES = range(96, 641, 32)
STRIDE = 32
POOLED_SIDE = 6
# The least side, in pixels, at which cells for explanations are read: finer than 224, and still what Lite0 can read.
CELLS_SIDE = 320
SETTINGS = "tf_efficientnet_lite0, 224 x 224 bicubic, (x - 127) / 128, map 7 x 7, windows 2 x 2 to 6 x 6, v1"
# Names of the graph's input and output.
PIXELS, MAP = "pixels", "map"


@dataclass(frozen=True)
class GridKind:
    """Which network a file of fine-tuned weights is of, and the side in pixels of the squares that it reads.

    A file's metadata say so, {"network": "tf_efficientnet_lite2", "side": "320"}; what they leave out is as here.
    """

    network: str = NETWORKS[0]
    side: int = 224

    @property
    def settings(self) -> str:
        """What decides regions beside the weights, for fingerprints."""
        if self == GridKind():
            return SETTINGS
        return f"{self.network}, {self.side} x {self.side} bicubic, (x - 127) / 128, map pooled to 6 x 6, v1"

    @property
    def metadata(self) -> dict[str, str]:
        """What a file of its weights says; a file of the first kind says nothing."""
        return {} if self == GridKind() else {"network": self.network, "side": str(self.side)}


def kind_in(metadata: Mapping[str, str], path: Path) -> GridKind:
    """Which network the metadata of a file names. Raises `CheckpointError` where that is none of the family."""
    network, side = metadata.get("network", NETWORKS[0]), metadata.get("side", "224")
    # As text: digits of other scripts and signs are numbers to Python.
    if network not in NETWORKS or side not in map(str, SIDES):
        raise CheckpointError(
            f"{path} is of the network {network[:100]!r} at {side[:100]!r} pixels; vsrn's grid reads {NETWORKS[0]} to"
            f" {NETWORKS[-1]} at {SIDES[0]} to {SIDES[-1]} pixels, a multiple of {SIDES.step}."
        )
    return GridKind(network, int(side))


def pooled_size(height: int, width: int) -> tuple[int, int]:
    """Windows along each axis: 6, or as many as there are cells."""
    return min(POOLED_SIDE, height), min(POOLED_SIDE, width)


def edges(cells: int, windows: int) -> tuple[IntArray, IntArray]:
    """Where windows begin and end along an axis, in cells: as torch's `adaptive_avg_pool2d` cuts them."""
    place = np.arange(windows)
    return place * cells // windows, -(-(place + 1) * cells // windows)


def window_boxes(rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(N, 4) xyxy fractions of the photo, in raster order: windows that average pooling makes of a map.

    rows, columns  (cells, windows) along each axis; where they are as many, a window is a cell
    """
    (tops, bottoms), (lefts, rights) = ([edge / axis[0] for edge in edges(*axis)] for axis in (rows, columns))
    top, left = (grid.ravel() for grid in np.meshgrid(tops, lefts, indexing="ij"))
    bottom, right = (grid.ravel() for grid in np.meshgrid(bottoms, rights, indexing="ij"))
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def squashed(photo: Image.Image, width: int, height: int, resample: int = Image.Resampling.BICUBIC) -> Prepared:
    """A photo of any shape -> (height, width, 3) uint8; `resample` is a number of `PIL.Image.Resampling`."""
    return np.array(photo.resize((width, height), Image.Resampling(resample)))


class OnnxGridExtractor:
    """36 windows of a photo (fewer below 192 pixels), in raster order, without scores."""

    has_scores: ClassVar[bool] = False
    names: ClassVar[RegionNames] = RegionNames()
    name: str = NAME

    def __init__(self, weights: Path, device: str = "auto") -> None:
        """Open an exported network. Raises `CheckpointError` where the file is broken or holds another graph."""
        content, tensors, metadata = read_content(weights)
        self.path, self.kind = weights, kind_in(metadata, weights)
        self.files = ExtractorFiles(weights, device=device)
        self.fingerprint = _fingerprint(f"{self.kind.settings}, fine-tuned", tensors, weights)
        # Photos are what is computed side by side.
        self.session = open_session(content, weights, threads=1)
        entries = [*self.session.get_inputs(), *self.session.get_outputs()]
        shapes = [(entry.name, entry.type, len(entry.shape), *entry.shape[1:2]) for entry in entries]
        self.feature_dim: int = shapes[-1][-1]
        wanted = [(PIXELS, "tensor(float)", 4, 3), (MAP, "tensor(float)", 4, self.feature_dim)]
        if shapes != wanted or not isinstance(self.feature_dim, int):
            raise CheckpointError(f"{weights} is not the network of an extractor '{NAME}'; export the model again.")
        cells = self.kind.side // STRIDE
        self.windows = pooled_size(cells, cells)[0]
        self.boxes = window_boxes((cells, self.windows), (cells, self.windows))
        self.num_regions, self.photo_size = self.windows**2, max(CELLS_SIDE, self.kind.side)

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (side, side, 3) uint8, squashed."""
        return squashed(photo, self.kind.side, self.kind.side)

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(side, side, 3) uint8 arrays -> `Regions` of each, one photo a call, side by side in threads."""
        # A photo fills the processor's cache: several in one call are no faster.
        said = os.environ.get("OMP_NUM_THREADS", "")
        threads = min(len(prepared), int(said) if said.isdecimal() and int(said) else processors())
        if threads < 2:
            return [self._regions(self.map_of(pixels)) for pixels in prepared]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda pixels: self._regions(self.map_of(pixels)), prepared))

    def with_cells(self, photo: Image.Image, prepared: Prepared) -> tuple[Regions, Regions]:
        """The regions of one RGB photo, of which `prepared` is what `prepare` gave, and the cells of its map.

        Cells are of the map read at 320 pixels, or at the network's own side where that is larger.
        """
        of_windows = of_cells = self.map_of(prepared)
        side = self.photo_size
        if side != self.kind.side:
            of_cells = self.map_of(squashed(photo, side, side))
        rows, columns = of_cells.shape[:2]
        cells = Regions(of_cells.reshape(rows * columns, -1), window_boxes((rows, rows), (columns, columns)))
        return self._regions(of_windows), cells

    def map_of(self, pixels: Prepared) -> FloatArray:
        """(side, side, 3) of 0 to 255 -> (H, W, F) float32. Raises `CheckpointError` where the file does not run."""
        scaled = (pixels.astype(np.float32).transpose(2, 0, 1)[None] - 127) / 128
        wanted = (1, self.feature_dim, *(side // STRIDE for side in pixels.shape[:2]))
        try:
            (found,) = self.session.run([MAP], {PIXELS: np.ascontiguousarray(scaled)})
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise CheckpointError(
                f"{self.path} cannot be run by onnxruntime ({first_line(error)}); export the model again."
            ) from error
        if found.shape != wanted:
            raise CheckpointError(f"{self.path} gives {found.shape}, not {wanted}; export the model again.")
        return np.ascontiguousarray(found[0].transpose(1, 2, 0))

    def _regions(self, cells: FloatArray) -> Regions:
        """(H, W, F) -> the mean of each window."""
        for axis in (0, 1):
            spans = zip(*edges(cells.shape[axis], self.windows), strict=True)
            cells = np.stack([cells.take(range(*span), axis).mean(axis) for span in spans], axis)
        return Regions(cells.reshape(self.num_regions, -1), self.boxes)


def make(argument: str, files: ExtractorFiles) -> RegionExtractor:
    """What `--extractor grid [--weights FILE]` asks for: by onnxruntime where the file is ONNX, by torch elsewhere."""
    if argument:
        raise ConfigError(f"the extractor '{NAME}' has no settings; write '{NAME}', without ':{argument}'.")
    check_no_names(NAME, files)
    if runs_without_torch(NAME, files.weights, files.device) and files.weights is not None:
        return OnnxGridExtractor(files.weights, files.device)
    # By its name, as other extractors are: it imports this module, and torch comes with it.
    by_torch: RegionExtractor = importlib.import_module("vsrn.extractors.grid").GridExtractor(
        files.weights, files.device
    )
    return by_torch


def runs_without_torch(name: str, weights: Path | None, device: str) -> bool:
    """Whether an extractor of this name, with these weights, computes on this device without torch.

    Where the device may be chosen, a graphics processor goes first: for that torch reads the same file.
    """
    if name != NAME or weights is None or weights.suffix != ".onnx":
        return False
    return device in ("cpu", "auto") and not may_be_gpu(device)


def _fingerprint(settings: str, tensors: Mapping[str, npt.NDArray[Any]], path: Path) -> str:
    """As `vsrn.tensors.fingerprint_of` makes it of tensors of torch. Raises `CheckpointError` for NaN and infinity."""
    digest = hashlib.sha256(settings.encode())
    for name in sorted(tensors):
        if not np.isfinite(tensors[name]).all():
            raise CheckpointError(f"{path} has NaN or infinity in {name[:100]!r}; export the model again.")
        digest.update(f"{name} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].astype("<f4").data)
    return digest.hexdigest()
