"""Faster R-CNN with a ResNet-101 (C4), as trained on Visual Genome for bottom-up attention.

    pixels --stem, res2..res4--> map --rpn--> objectness, deltas --proposals.py--> boxes
                                   \\--RoIPool over boxes, res5, mean--> features --> classes, attributes

Batch normalisation is folded into the convolutions when weights are loaded, so that only convolutions are left here.

B photos, R boxes; a map cell is 16 x 16 pixels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import roi_pool

STRIDE = 16
POOLED_SIDE = 14
FEATURE_DIM = 2048
NUM_CLASSES, NUM_ATTRIBUTES = 1600, 400
NUM_CELL_ANCHORS = 12
# Pooled boxes are large (0.8 MB each, twice that inside res5): a few at once stay near the processor.
BOXES_AT_ONCE = 16


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
        features = feature_map.new_empty(len(boxes), FEATURE_DIM)
        for start in range(0, len(boxes), BOXES_AT_ONCE):
            some = boxes[start : start + BOXES_AT_ONCE]
            pooled = roi_pool(feature_map, [some], POOLED_SIDE, 1 / STRIDE)  # (some, 1024, 14, 14)
            pooled = pooled.contiguous(memory_format=torch.channels_last)
            features[start : start + len(some)] = self.res5(pooled).mean(dim=(2, 3))
        return features

    def attribute_logits(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(R, 2048) features, (R,) their most probable classes, background included -> (R, 401)."""
        both = torch.cat([features, self.class_embedding(classes)], dim=1)
        return self.attribute_score(functional.relu(self.attribute_hidden(both)))


def _stage(blocks: int, dim_in: int, dim_hidden: int, dim_out: int, *, stride: int = 1, dilation: int = 1) -> nn.Module:
    first = Bottleneck(dim_in, dim_hidden, dim_out, stride=stride, dilation=dilation)
    return nn.Sequential(
        first, *(Bottleneck(dim_out, dim_hidden, dim_out, dilation=dilation) for _ in range(blocks - 1))
    )
