"""Faster R-CNN with a ResNet-101 (C4), as trained on Visual Genome for bottom-up attention.

    pixels --stem, res2..res4--> map --rpn--> objectness, deltas --propose--> boxes
                                   \\--RoIPool over boxes, res5, mean--> features --> classes, attributes

B photos, R boxes, A anchors a cell; a map is h x w cells of 16 x 16 pixels; boxes are xyxy in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import nms, roi_pool

STRIDE = 16
POOLED_SIDE = 14
FEATURE_DIM = 2048
NUM_CLASSES, NUM_ATTRIBUTES = 1600, 400
NUM_CELL_ANCHORS = 12
# Pooled boxes are large (0.8 MB each, twice that inside res5): a few at once stay near the processor.
BOXES_AT_ONCE = 16
# A delta may stretch an anchor of 16 pixels to 1,000 and no further, so that no exponential overflows.
MAX_LOG_SCALE = math.log(1000 / 16)
ANCHOR_SIDES = (64, 128, 256, 512)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut; as in Caffe's ResNet, the first one takes the stride."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if dim_in == dim_out else nn.Conv2d(dim_in, dim_out, 1, stride)
        self.conv1 = nn.Conv2d(dim_in, dim_hidden, 1, stride)
        self.conv2 = nn.Conv2d(dim_hidden, dim_hidden, 3, padding=dilation, dilation=dilation)
        self.conv3 = nn.Conv2d(dim_hidden, dim_out, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, dim_in, H, W) -> (B, dim_out, H / stride, W / stride)."""
        hidden = functional.relu(self.conv1(maps), inplace=True)
        hidden = functional.relu(self.conv2(hidden), inplace=True)
        return functional.relu(self.conv3(hidden).add_(self.shortcut(maps)), inplace=True)


class RegionProposalNetwork(nn.Module):
    """Of every anchor of every cell: is there an object, and where are its edges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1024, 512, 3, padding=1)
        self.objectness = nn.Conv2d(512, NUM_CELL_ANCHORS, 1)
        self.deltas = nn.Conv2d(512, 4 * NUM_CELL_ANCHORS, 1)

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1024, h, w) -> logits (B, 12, h, w), deltas (B, 48, h, w) laid out (anchor, 4)."""
        hidden = functional.relu(self.conv(feature_map), inplace=True)
        return self.objectness(hidden), self.deltas(hidden)


class BottomUpNetwork(nn.Module):
    """The parts of the detector; `extractor.py` puts them in order.

    cell_anchors  (12, 4) xyxy pixels around the top-left of a cell
    """

    cell_anchors: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.res2 = _stage(3, 64, 64, 256)
        self.res3 = _stage(4, 256, 128, 512, stride=2)
        self.res4 = _stage(23, 512, 256, 1024, stride=2)
        self.rpn = RegionProposalNetwork()
        self.res5 = _stage(3, 1024, 512, FEATURE_DIM, dilation=2)
        # The background comes last among the classes, "no attribute" last among the attributes.
        self.class_score = nn.Linear(FEATURE_DIM, NUM_CLASSES + 1)
        self.class_embedding = nn.Embedding(NUM_CLASSES + 1, 256)
        self.attribute_hidden = nn.Linear(FEATURE_DIM + 256, 512)
        self.attribute_score = nn.Linear(512, NUM_ATTRIBUTES + 1)
        self.register_buffer("cell_anchors", torch.zeros(NUM_CELL_ANCHORS, 4))

    def feature_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) BGR minus the mean -> (B, 1024, H / 16, W / 16)."""
        maps = functional.relu(self.stem(pixels), inplace=True)
        # Caffe rounds the size of a pooled map up and pads nothing.
        maps = functional.max_pool2d(maps, 3, 2, ceil_mode=True)
        return self.res4(self.res3(self.res2(maps)))

    def describe(self, feature_map: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(1, 1024, h, w), (R, 4) xyxy pixels -> (R, 2048) features of what is in each box."""
        features = []
        for start in range(0, len(boxes), BOXES_AT_ONCE):
            some = boxes[start : start + BOXES_AT_ONCE]
            pooled = roi_pool(feature_map, [some], POOLED_SIDE, 1 / STRIDE)  # (some, 1024, 14, 14)
            features.append(self.res5(pooled.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3)))
        return torch.cat(features)

    def attribute_logits(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(R, 2048) features, (R,) their most probable classes, background included -> (R, 401)."""
        both = torch.cat([features, self.class_embedding(classes)], dim=1)
        return self.attribute_score(functional.relu(self.attribute_hidden(both)))


def _stage(blocks: int, dim_in: int, dim_hidden: int, dim_out: int, *, stride: int = 1, dilation: int = 1) -> nn.Module:
    first = Bottleneck(dim_in, dim_hidden, dim_out, stride=stride, dilation=dilation)
    return nn.Sequential(
        first, *(Bottleneck(dim_out, dim_hidden, dim_out, dilation=dilation) for _ in range(blocks - 1))
    )


@dataclass(frozen=True)
class ProposalRules:
    """Which boxes are worth looking into.

    min_side      pixels; smaller boxes are dropped
    before_nms    most probable boxes that suppress each other
    after_nms     of those left, the boxes kept
    nms_overlap   intersection over union above which the less probable of two boxes goes
    edge          1.0 where weights count a box's last pixel in, as Caffe does: width = x2 - x1 + 1; else 0.0
    """

    min_side: float = 16.0
    before_nms: int = 6000
    after_nms: int = 300
    nms_overlap: float = 0.7
    edge: float = 0.0


def default_anchors() -> torch.Tensor:
    """(12, 4): squares of 64, 128, 256 and 512 pixels, each made wide, left alone and made tall, centred on 0."""
    sides, ratios = torch.tensor(ANCHOR_SIDES)[:, None], torch.tensor(ANCHOR_RATIOS)
    width = (sides / ratios.sqrt()).flatten()
    height = (sides * ratios.sqrt()).flatten()
    return torch.stack([-width, -height, width, height], dim=1) / 2


def caffe_anchors() -> torch.Tensor:
    """(12, 4): the anchors of py-faster-rcnn for scales 4, 8, 16, 32, whole pixels around the middle of a cell.

    Ratios change slowest there, and the last pixel counts: a box from 0 to 15 is 16 wide.
    """
    anchors = []
    for ratio in ANCHOR_RATIOS:
        width = round(math.sqrt(STRIDE * STRIDE / ratio))
        height = round(width * ratio)
        for scale in (side / STRIDE for side in ANCHOR_SIDES):
            half = torch.tensor([width * scale - 1, height * scale - 1]) / 2
            anchors.append(torch.cat([(STRIDE - 1) / 2 - half, (STRIDE - 1) / 2 + half]))
    return torch.stack(anchors)


def place_anchors(cell_anchors: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(A, 4) anchors of one cell -> (h * w * A, 4): those of each cell, row by row."""
    sides = (torch.arange(side, device=cell_anchors.device) * STRIDE for side in (height, width))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    corners = torch.stack([columns, rows, columns, rows], dim=2)
    return (corners[:, :, None] + cell_anchors).flatten(0, 2)


def apply_deltas(anchors: torch.Tensor, deltas: torch.Tensor, edge: float) -> torch.Tensor:
    """(N, 4) anchors moved by (N, 4) deltas: centre in units of the anchor, logarithm of the scale."""
    size = anchors[:, 2:] - anchors[:, :2] + edge
    centre = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    half = size * deltas[:, 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], dim=1)


def propose(
    objectness: torch.Tensor,
    deltas: torch.Tensor,
    cell_anchors: torch.Tensor,
    photo_size: tuple[int, int],
    rules: ProposalRules,
) -> torch.Tensor:
    """The most probable boxes of one photo, most probable first.

    objectness    (A, h, w) logits
    deltas        (4 A, h, w) laid out (anchor, 4)
    cell_anchors  (A, 4)
    photo_size    height and width of the pixels that the network read

    Returns (R, 4) with R <= `rules.after_nms`; where all boxes are too small, the whole photo.
    """
    A, height, width = objectness.shape
    scores = objectness.permute(1, 2, 0).flatten()
    moves = deltas.view(A, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    boxes = apply_deltas(place_anchors(cell_anchors, height, width), moves, rules.edge)
    limit = boxes.new_tensor([photo_size[1], photo_size[0]] * 2) - rules.edge
    boxes = boxes.clamp(min=0).minimum(limit)
    large = (boxes[:, 2:] - boxes[:, :2] + rules.edge > rules.min_side).all(dim=1)
    if not large.any():
        return torch.cat([torch.zeros_like(limit[:2]), limit[2:]])[None]
    boxes, scores = boxes[large], scores[large]
    best = scores.topk(min(rules.before_nms, len(scores))).indices
    boxes, scores = boxes[best], scores[best]
    # Areas count the last pixel in, where the weights do.
    counted = torch.cat([boxes[:, :2], boxes[:, 2:] + rules.edge], dim=1)
    return boxes[nms(counted, scores, rules.nms_overlap)[: rules.after_nms]]


@dataclass(frozen=True)
class SelectionRules:
    """Which proposals become regions.

    fewest, most    how many; equal for a fixed number
    threshold       confidence from which a proposal is wanted, within those bounds
    nms_overlap     intersection over union above which, within a class, the less probable of two boxes goes
    """

    fewest: int = 36
    most: int = 36
    threshold: float = 0.2
    nms_overlap: float = 0.3


def select(
    boxes: torch.Tensor, probabilities: torch.Tensor, rules: SelectionRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a photo's regions among R proposals.

    boxes          (R, 4) xyxy; every class judges the same boxes
    probabilities  (R, C) of the classes without the background

    The detector is as sure of a proposal as of its best class among those where no likelier box covers it: 0 where each
    class suppresses it. Returns the rows that were chosen, most confident first, and their confidences, on the CPU.
    They are fewer than `rules.fewest` only where there are not so many proposals.
    """
    boxes, probabilities = boxes.cpu(), probabilities.cpu()
    best = torch.zeros(len(boxes))
    for of_class in probabilities.T.contiguous():
        kept = nms(boxes, of_class, rules.nms_overlap)
        best[kept] = best[kept].maximum(of_class[kept])
    ordered = best.sort(descending=True, stable=True)
    wanted = int((ordered.values >= rules.threshold).sum())
    number = min(max(wanted, rules.fewest), rules.most)
    return ordered.indices[:number], ordered.values[:number]
