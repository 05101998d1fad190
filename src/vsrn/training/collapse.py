"""Whether a run is stuck where the hardest negatives can push an untrained model: all similarities equal."""

from __future__ import annotations

import numpy as np

from vsrn.config import Config
from vsrn.metrics import RetrievalMetrics
from vsrn.model.losses import hardness_after

NEAR = 0.05
COLLAPSED = (
    "The matching loss stays at 2 x batch x margin = {limit:.1f}, where all similarities are equal, and recall is at"
    " chance or falls: the model is stuck on the hardest negatives. If it stays there, start again with"
    ' loss.warm_up_epochs = 1 or more, or with loss.negatives = "all".'
)


def is_stuck(matching_loss: float, config: Config, batch_size: int, epochs: float) -> bool:
    """Whether a mean matching loss, from so many epochs on, is within 5 % of that of equal similarities."""
    limit = 2 * batch_size * config.loss.margin
    hardest = config.loss.matching == "triplet" and bool(hardness_after(config.loss, epochs) == 1)
    return hardest and abs(matching_loss - limit) <= NEAR * limit


def at_chance(metrics: RetrievalMetrics, images: int, captions: int) -> bool:
    """Whether the recalls of so many images and captions are about those of a random order.

    About means at most twice the random rsum, and no further from it than a tenth of the way to 600.
    """
    # A caption's one image is among the first K of a random order in K of all cases.
    places = np.array([1, 5, 10])
    to_images = np.minimum(1, places / images)
    # An image misses with K captions where all are of other images.
    others, tried = captions - captions / images, np.arange(places.max())
    misses = np.cumprod(np.clip((others - tried) / np.maximum(captions - tried, 1), 0, 1))[places - 1]
    random = 100 * float(to_images.sum() + (1 - misses).sum())
    return metrics.rsum <= min(2 * random, random + 0.1 * (600 - random))
