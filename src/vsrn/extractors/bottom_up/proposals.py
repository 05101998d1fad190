"""From what the region proposal network says to the boxes worth looking into, and which of these become regions.

h x w cells of 16 x 16 pixels, A anchors a cell; boxes are xyxy in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torchvision.ops import nms

from vsrn.extractors.bottom_up.network import STRIDE

# A delta may at_least_float32 an anchor of 16 pixels to 1,000 and no further, so that no exponential overflows.
MAX_LOG_SCALE = math.log(1000 / 16)
ANCHOR_SIDES = (64, 128, 256, 512)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)


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
    rows, columns = torch.meshgrid(
        torch.arange(height, device=cell_anchors.device) * STRIDE,
        torch.arange(width, device=cell_anchors.device) * STRIDE,
        indexing="ij",
    )
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
    kept = nms(counting_edge(boxes, rules.edge), scores, rules.nms_overlap)
    return boxes[kept[: rules.after_nms]]


def counting_edge(boxes: torch.Tensor, edge: float) -> torch.Tensor:
    """(N, 4) boxes whose areas count the last pixel in, where the weights do."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] + edge], dim=1)


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


def confidences(boxes: torch.Tensor, probabilities: torch.Tensor, nms_overlap: float) -> torch.Tensor:
    """How sure the detector is of each proposal: its best class among those where no likelier box covers it.

    boxes          (R, 4) xyxy; every class judges the same boxes
    probabilities  (R, C) of the classes without the background

    Returns (R,), 0 where a proposal is suppressed in every class.
    """
    boxes, probabilities = boxes.cpu(), probabilities.cpu()
    best = torch.zeros(len(boxes))
    for of_class in probabilities.T.contiguous():
        kept = nms(boxes, of_class, nms_overlap)
        best[kept] = best[kept].maximum(of_class[kept])
    return best


def select(
    boxes: torch.Tensor, probabilities: torch.Tensor, rules: SelectionRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a photo's regions among R proposals: arguments as in `confidences`.

    Returns the rows that were chosen, most confident first, and their confidences. They are fewer than
    `rules.fewest` only where there are not so many proposals.
    """
    ordered = confidences(boxes, probabilities, rules.nms_overlap).sort(descending=True, stable=True)
    wanted = int((ordered.values >= rules.threshold).sum())
    number = min(max(wanted, rules.fewest), rules.most)
    return ordered.indices[:number], ordered.values[:number]
