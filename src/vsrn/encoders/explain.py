"""Why an image matches a sentence, region by region; the formulas are in docs/explain.md.

explain_regions(encoder, regions, "two dogs")                 # what each region adds to the similarity
explain_regions(encoder, regions, "two dogs", view="image")   # what each region adds to the image's own embedding
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vsrn.data.regions import Regions
from vsrn.metrics import FloatArray, IntArray

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder

ExplainView = Literal["sentence", "image"]

# The paper's lambda. Heat is scaled to its largest pixel afterwards, so it decides nothing.
LAMBDA = 50
# Pixels along each side of a heat map. Cells of the grid extractor, a seventh of the photo wide, fill 16 exactly.
HEAT_SIDE = 112


class WeighedRegion(NamedTuple):
    """One region of an explanation; as in `Explanation`.

    box     (4,) xyxy, fractions of the photo's width and height; None where its place is not known
    share   of everything that the regions add up to, from 0 to 1
    """

    box: FloatArray | None
    weight: float
    share: float
    label: str | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """What each region of an image does for a match.

    boxes    (N, 4) float32 xyxy, fractions of the photo's width and height, in the order of the regions; None where
             regions come without boxes, as precomputed ones often do
    weights  (N,) float32. View "sentence": the similarity minus the similarity without that region, so that what is
             positive earned the match. View "image": inner product of the reasoned region with the image embedding
    heat     (H, W) float32 from 0 to 1, laid over the whole photo whatever its shape; None without boxes
    score    the similarity of the image and the sentence
    labels   (N,) class names of the regions, empty for one without; None where they carry none
    view     which question this answers
    """

    boxes: FloatArray | None
    weights: FloatArray
    heat: FloatArray | None
    score: float
    labels: list[str] | None
    view: ExplainView

    @cached_property
    def shares(self) -> FloatArray:
        """(N,) float32 that sum to 1, or all 0 where no region adds anything: how much of the heat is each region's."""
        return region_shares(self.weights, self.view)

    def top(self, k: int) -> list[WeighedRegion]:
        """The k regions with the largest shares, largest first; those without any are left out."""
        order = [place for place in np.argsort(-self.shares, kind="stable")[:k] if self.shares[place] > 0]
        return [self._region(place) for place in order]

    def to_json(self) -> dict[str, object]:
        """Plain numbers for JSON: `view`, `score` and `regions`, in their order; heat follows from those."""
        return {
            "view": self.view,
            "score": round(self.score, 6),
            "regions": [
                ({} if region.box is None else {"box": [round(float(edge), 6) for edge in region.box]})
                | {
                    "weight": round(region.weight, 6),
                    "share": round(region.share, 6),
                }
                | ({} if region.label is None else {"label": region.label})
                for region in map(self._region, range(len(self.weights)))
            ],
        }

    def _region(self, place: int) -> WeighedRegion:
        label = None if self.labels is None else self.labels[place] or None
        box = None if self.boxes is None else self.boxes[place]
        return WeighedRegion(box, float(self.weights[place]), float(self.shares[place]), label)


def explain_regions(
    encoder: Encoder,
    regions: Regions,
    sentence: str,
    view: ExplainView = "sentence",
    labels: list[str] | None = None,
) -> Explanation:
    """Explain the match of one image, given by its regions, with a sentence; one call of the image encoder.

    labels  (N,) class names of the regions

    Raises what the encoder raises, such as `DataError` where the regions are not of the size that it reads.
    """
    caption, compare = encoder.encode_captions([sentence]), encoder.similarity
    if view == "sentence":
        images = encoder.encode_regions(*without_each(regions.features))
        similarities = compare(images, caption)[:, 0]
        # Without its only region an image has no embedding; its similarity then counts as 0.
        without = similarities[1:] if len(regions.features) > 1 else np.zeros(1, np.float32)
        score, weights = float(similarities[0]), similarities[0] - without
    else:
        images, reasoned = encoder.reasoned_regions(regions.features[None])
        score = float(compare(images, caption)[0, 0])
        weights = reasoned[0] @ images[0]
    weights = weights.astype(np.float32)
    boxes: FloatArray | None = regions.boxes
    heat = None if boxes is None else heat_map(boxes, region_shares(weights, view))
    return Explanation(boxes, weights, heat, score, labels, view)


def without_each(features: FloatArray) -> tuple[FloatArray, IntArray]:
    """(N, F) features of an image -> a batch of it whole and then without each of its regions in turn.

    Returns (N + 1, N, F) features, the remaining regions in their order and padding after them, and (N + 1,) counts.
    Of a single region there is only the whole.

    >>> features, counts = without_each(np.array([[1.0], [2.0], [3.0]]))
    >>> features[..., 0]
    array([[1., 2., 3.],
           [2., 3., 0.],
           [1., 3., 0.],
           [1., 2., 0.]])
    >>> counts
    array([3, 2, 2, 2])
    """
    N = len(features)
    if N == 1:
        return features[None], np.ones(1, dtype=np.int64)
    kept = np.arange(N - 1)
    kept = kept + (kept >= np.arange(N)[:, None])  # (N, N - 1) places without the one on the diagonal
    batch = np.zeros((N + 1, *features.shape), dtype=features.dtype)
    batch[0], batch[1:, :-1] = features, features[kept]
    return batch, np.array([N] + [N - 1] * N)


def region_shares(weights: FloatArray, view: ExplainView) -> FloatArray:
    """(N,) weights -> (N,) float32 shares of the heat that sum to 1, or are all 0 where no region adds anything.

    sentence  max(weight, 0), scaled: a region with a negative weight has no share
    image     lambda (k - rank)^2, scaled; k regions, rank from 0 for the largest weight, as in the paper
    """
    if view == "sentence":
        scores = np.maximum(weights, 0).astype(np.float64)
    else:
        ranks = np.empty(len(weights))
        ranks[np.argsort(-weights, kind="stable")] = np.arange(len(weights))
        scores = LAMBDA * (len(weights) - ranks) ** 2
    total = scores.sum()
    return (scores / total if total > 0 else scores).astype(np.float32)


def heat_map(boxes: FloatArray, shares: FloatArray, side: int = HEAT_SIDE) -> FloatArray:
    """(N, 4) boxes, (N,) shares -> (side, side) float32 from 0 to 1 over the whole photo.

    Each pixel sums the shares of the boxes that its centre lies in; the hottest pixel is 1, or none where no box has
    a share.
    """
    heat = np.zeros((side, side), dtype=np.float64)
    # Pixel p's centre, (p + 0.5) / side, is not left of an edge from here on.
    edges = np.clip(np.ceil(boxes.astype(np.float64) * side - 0.5), 0, side).astype(np.int64)
    for (x0, y0, x1, y1), share in zip(edges.tolist(), shares.tolist(), strict=True):
        heat[y0:y1, x0:x1] += share
    hottest = heat.max()
    return (heat / hottest if hottest > 0 else heat).astype(np.float32)
