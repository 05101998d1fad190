"""Regions of bottom-up attention: `vsrn extract --extractor bottom-up --weights FILE`.

`bottom-up` keeps the 36 most confident regions of every photo, as the paper does; `bottom-up:10-100` keeps those
above a confidence of 0.2, from 10 to 100.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.errors import ConfigError, DataError, PhotoError
from vsrn.extractors.base import NAME_THEM, ExtractorFiles, Prepared
from vsrn.extractors.bottom_up.network import (
    FEATURE_DIM,
    NUM_ATTRIBUTES,
    NUM_CLASSES,
    ProposalRules,
    SelectionRules,
    propose,
    select,
)
from vsrn.extractors.bottom_up.weights import read_weights
from vsrn.files import read_lines

NAME = "bottom-up"
# First lines of published lists of names.
_BACKGROUND = ("__background__", "__no_attribute__")
_COUNTS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
# Blue, green, red, as Caffe's networks have them.
MEAN_BGR = (102.9801, 115.9465, 122.7717)
Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScaleRules:
    """How large a photo is made: its short side so many pixels, unless its long side grows beyond the other."""

    short_side: int = 600
    long_side: int = 1000


def to_pixels(photo: npt.NDArray[np.uint8], rules: ScaleRules, min_side: float) -> Pixels:
    """(H, W, 3) RGB -> (H', W', 3) float32, BGR minus the mean, resized.

    As in the published features, the mean goes first, and the resizing is bilinear between the nearest pixels even
    where a photo shrinks. Raises `PhotoError` where no box of `min_side` pixels fits into what is left of its side.
    """
    height, width = photo.shape[:2]
    scale = rules.short_side / min(height, width)
    if round(scale * max(height, width)) > rules.long_side:
        scale = rules.long_side / max(height, width)
    new_height, new_width = round(height * scale), round(width * scale)
    if min(new_height, new_width) <= min_side:
        raise PhotoError(
            f"is {width} x {height} pixels, too narrow: with its long side brought to {rules.long_side} pixels"
            f" no region of {min_side:g} fits; crop it."
        )
    centred = photo[:, :, ::-1].astype(np.float32) - np.asarray(MEAN_BGR, np.float32)
    wide = _stretch(centred.transpose(1, 0, 2), new_width, scale).transpose(1, 0, 2)
    return np.ascontiguousarray(_stretch(wide, new_height, scale))


def _stretch(lines: Pixels, number: int, scale: float) -> Pixels:
    """(old, ...) lines -> (number, ...), each mixed from the two nearest to its centre."""
    centre = (np.arange(number) + 0.5) / scale - 0.5
    below = np.floor(centre).clip(0, len(lines) - 1).astype(np.intp)
    above = np.minimum(below + 1, len(lines) - 1)
    weight = (centre - below).clip(0, 1).astype(np.float32).reshape(-1, *[1] * (lines.ndim - 1))
    return lines[below] * (1 - weight) + lines[above] * weight


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a photo's regions but the weights."""

    scale: ScaleRules = field(default_factory=ScaleRules)
    proposals: ProposalRules = field(default_factory=ProposalRules)
    selection: SelectionRules = field(default_factory=SelectionRules)


class BottomUpExtractor:
    """Detections of Faster R-CNN trained on Visual Genome, most confident first, as regions of 2,048 numbers."""

    feature_dim: ClassVar[int] = FEATURE_DIM
    has_scores: ClassVar[bool] = True
    photo_size: ClassVar[None] = None

    def __init__(
        self,
        weights: Path | str,
        recipe: Recipe | None = None,
        names: RegionNames | None = None,
        device: str = "auto",
    ) -> None:
        """Load the weights. Raises `CheckpointError` where the file is missing or foreign.

        names   of its 1,600 classes and 400 attributes (`read_region_names`)
        device  where it computes: `cpu`, `cuda`, `mps` or `auto`
        """
        self.device, self.files = pick_device(device), ExtractorFiles(Path(weights), device=device)
        self.names, recipe = names or RegionNames(), recipe or Recipe()
        read = read_weights(Path(weights))
        self.recipe = replace(recipe, proposals=replace(recipe.proposals, edge=read.edge))
        self.name, self.num_regions = name_of(recipe.selection), recipe.selection.most
        self.fingerprint = hashlib.sha256(f"{read.fingerprint} {self.recipe} v1".encode()).hexdigest()
        self.network = read.network.to(self.device)

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> what `to_pixels` gives. Raises `PhotoError` where it is too narrow for a box."""
        return to_pixels(np.asarray(photo), self.recipe.scale, self.recipe.proposals.min_side)

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(H, W, 3) float32 arrays -> `Regions` of each, one photo at a time: hardly two have the same size."""
        with torch.inference_mode():
            return [self._regions_of(torch.from_numpy(photo).to(self.device)) for photo in prepared]

    def _regions_of(self, photo: torch.Tensor) -> Regions:
        height, width = photo.shape[:2]
        feature_map = self.network.feature_map(photo.permute(2, 0, 1)[None])
        objectness, deltas = self.network.rpn(feature_map)
        boxes = propose(objectness[0], deltas[0], self.network.cell_anchors, (height, width), self.recipe.proposals)
        features = self.network.describe(feature_map, boxes)
        logits = self.network.class_score(features)
        rows, scores = select(boxes, logits.softmax(dim=1)[:, :-1], self.recipe.selection)
        rows = rows.to(self.device)
        features, logits = features[rows], logits[rows]
        # The attributes are asked of whatever is likeliest, be it the background, as in training.
        attributes = self.network.attribute_logits(features, logits.argmax(dim=1)).argmax(dim=1)
        attributes[attributes == NUM_ATTRIBUTES] = -1
        size = boxes.new_tensor([width, height, width, height])
        return Regions(
            features=features.cpu().numpy(),
            boxes=(boxes[rows] / size).cpu().numpy(),
            scores=scores.numpy(),
            classes=logits[:, :-1].argmax(dim=1).cpu().numpy(),
            attributes=attributes.cpu().numpy(),
        )


def make(argument: str, files: ExtractorFiles) -> BottomUpExtractor:
    """What `--extractor bottom-up[:COUNTS] --weights FILE` asks for. Raises `ConfigError` without weights."""
    rules = parse_counts(argument) if argument else SelectionRules()
    if files.weights is None:
        raise ConfigError(
            f"'{NAME}' needs the detector's published weights (docs/extractors.md says where they are){NAME_THEM}"
        )
    names = read_region_names(files.classes, files.attributes)
    extractor = BottomUpExtractor(files.weights, Recipe(selection=rules), names, files.device)
    extractor.files = files
    return extractor


def name_of(rules: SelectionRules) -> str:
    """The extractor's name: `bottom-up`, and how many regions where that is not 36."""
    if (rules.fewest, rules.most) == (36, 36):
        return NAME
    return f"{NAME}:{rules.most}" if rules.fewest == rules.most else f"{NAME}:{rules.fewest}-{rules.most}"


def parse_counts(text: str) -> SelectionRules:
    """How many regions `bottom-up:COUNTS` asks for. Raises `ConfigError` where that is no number or range.

    >>> parse_counts("10-100")
    SelectionRules(fewest=10, most=100, threshold=0.2, nms_overlap=0.3)
    """
    match = _COUNTS.fullmatch(text)
    fewest, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= fewest <= most <= ProposalRules().after_nms:
        raise ConfigError(
            f"'{NAME}:{text}' does not say how many regions; write {NAME}:10-100 or {NAME}:36, at most"
            f" {ProposalRules().after_nms}."
        )
    return SelectionRules(fewest, most)


def read_region_names(classes: Path | str | None = None, attributes: Path | str | None = None) -> RegionNames:
    """Read `objects_vocab.txt` and `attributes_vocab.txt` as they are published with the detector, or one of them.

    Of several names on a line, with commas between, the first counts; a first line for the background, or for no
    attribute, does not. Raises `DataError` where a file is missing or has another number of names.
    """
    return RegionNames(
        classes=[] if classes is None else _read_names(Path(classes), NUM_CLASSES, "classes"),
        attributes=[] if attributes is None else _read_names(Path(attributes), NUM_ATTRIBUTES, "attributes"),
    )


def _read_names(path: Path, number: int, what: str) -> list[str]:
    try:
        lines = read_lines(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name the file of the detector's {what}.") from error
    if lines and lines[0] in _BACKGROUND:
        del lines[0]
    names = [line.split(",")[0].strip() for line in lines]
    if len(names) != number or not all(name.isprintable() and name for name in names):
        raise DataError(
            f"{path} has {len(names):,} lines, {sum(map(bool, names)):,} of them names; the detector's {what} are"
            f" {number:,}, one a line."
        )
    return names
