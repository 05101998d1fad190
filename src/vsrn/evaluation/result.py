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
class Reranking:
    """A second stage: what it re-ordered, and what it gained and cost.

    model           whose similarities decide the order of the first `top` matches of every query
    alone           metrics of the first stage by itself
    first_seconds   encoding, comparing and ranking by the first stage
    second_seconds  what the second stage added
    """

    model: str
    top: int
    alone: RetrievalMetrics
    first_seconds: float
    second_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Every number, as plain JSON types."""
        seconds = {"first_stage": round(self.first_seconds, 2), "second_stage": round(self.second_seconds, 2)}
        return {"model": self.model, "top": self.top, "before": self.alone.to_json(), "seconds": seconds}


@dataclass(frozen=True)
class Evaluation:
    """Recall@K of one model, or of the mean similarity of several, on one split.

    intervals  95% bootstrap intervals over images; keys "image_to_text.recall_at_1" ... and "rsum"
    num_folds  1, or the number of 1,000-image folds that the metrics are averaged over
    reranking  the second stage, where there was one; `metrics` are those after it
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
    reranking: Reranking | None = None

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
            **({} if self.reranking is None else {"reranking": self.reranking.to_json()}),
        }
