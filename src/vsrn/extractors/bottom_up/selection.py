"""Which of the proposals become a photo's regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.ops import nms


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
