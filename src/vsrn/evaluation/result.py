"""What an evaluation found: numbers, intervals and a few examples to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vsrn.metrics import Interval, RetrievalMetrics

DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class Match:
    """One retrieved item of an example: a caption, or an image by its id."""

    text: str
    similarity: float
    correct: bool


@dataclass(frozen=True)
class Example:
    """One query and its best matches, best first.

    direction  "text_to_image": query is a caption and matches are image ids;
               "image_to_text": query is an image id and matches are captions
    rank       from 0, of the true match
    """

    direction: str
    query: str
    rank: int
    matches: list[Match]


@dataclass(frozen=True)
class Evaluation:
    """Recall@K of one model, or of the mean similarity of several, on one split.

    intervals  95% bootstrap intervals over images; keys "image_to_text.recall_at_1" ... and "rsum"
    num_folds  1, or the number of 1,000-image folds that the metrics are averaged over
    """

    models: list[str]
    data: str
    split: str
    num_images: int
    num_captions: int
    num_folds: int
    metrics: RetrievalMetrics
    intervals: dict[str, Interval]
    examples: list[Example]

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain JSON types, without its examples."""
        return {
            "models": self.models,
            "data": self.data,
            "split": self.split,
            "num_images": self.num_images,
            "num_captions": self.num_captions,
            "num_folds": self.num_folds,
            **self.metrics.to_json(),
            "intervals_95": {
                name: [round(interval.low, 2), round(interval.high, 2)] for name, interval in self.intervals.items()
            },
        }
