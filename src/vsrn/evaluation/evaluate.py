"""One model, or several as an ensemble, on one split: Recall@K both ways; the parts of `vsrn.evaluation.measure`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vsrn.data.splits import CaptionedImages, Split
from vsrn.encoders.backend import IMAGES_AT_ONCE
from vsrn.encoders.base import DEFAULT_BEAM, Encoder
from vsrn.encoders.ranking import rank_encoded
from vsrn.errors import ConfigError
from vsrn.metrics import (
    EVERY,
    Advance,
    Blocks,
    DirectionMetrics,
    EncodedSplit,
    FloatArray,
    IntArray,
    Interval,
    Ranks,
    RetrievalMetrics,
    bootstrap_intervals,
    five_folds,
    intervals_json,
    mean_of,
    retrieval_metrics,
    similarity_blocks,
)

BoolArray = npt.NDArray[np.bool_]

MATCHES_SHOWN = 5


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
    """Recall@K of one model, or of the mean similarity of several, on one split; `print` shows it as a table.

    models         names of the models; empty for similarities that came without a model
    data, split    where the images are, and the name of their split; "" where there is no split
    num_folds      1, or the number of 1,000-image folds that the metrics are averaged over
    metrics        both directions; `image_to_text`, `text_to_image` and `rsum` are shorter ways to them
    intervals      95% bootstrap intervals over images; keys "image_to_text.recall_at_1" ... and "rsum"
    ranks          of every query, from 0, within its fold
    examples       a few queries with their best matches, where they were asked for
    reranking      the second stage, where there was one; `metrics` are those after it
    weights        how much each model of an ensemble counts; None for all alike
    similarities   (num_images, num_captions) float32, where they were asked for
    has_ids        whether its images have ids on disk, by which their photos can be found, and are not just numbered
    unknown_share  share, 0 to 1, of the captions' words that the model never read; of several, the largest
    """

    models: list[str]
    data: str
    split: str
    num_images: int
    num_captions: int
    num_folds: int
    metrics: RetrievalMetrics
    intervals: dict[str, Interval]
    ranks: Ranks = field(repr=False, compare=False)
    examples: list[Example] = field(default_factory=list, repr=False)
    reranking: Reranking | None = None
    has_ids: bool = True
    unknown_share: float = 0.0
    weights: list[float] | None = None
    similarities: FloatArray | None = field(default=None, repr=False, compare=False)

    @property
    def image_to_text(self) -> DirectionMetrics:
        """How captions are found for images: `.recall_at_1`, `.median_rank`, ..."""
        return self.metrics.image_to_text

    @property
    def text_to_image(self) -> DirectionMetrics:
        """How images are found for captions."""
        return self.metrics.text_to_image

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, 0 to 600."""
        return self.metrics.rsum

    def __str__(self) -> str:
        """The field's table, as `vsrn evaluate` prints it."""
        from vsrn.evaluation.tables import as_text  # noqa: PLC0415 - most programs want the numbers alone

        return as_text(self)

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain JSON types, without its examples."""
        return {
            "models": self.models,
            "data": self.data,
            "split": self.split,
            "num_images": self.num_images,
            "num_captions": self.num_captions,
            "num_folds": self.num_folds,
            "unknown_share": round(self.unknown_share, 6),
            **self.metrics.to_json(),
            "intervals_95": intervals_json(self.intervals),
            **({} if self.reranking is None else {"reranking": self.reranking.to_json()}),
            **({} if self.weights is None else {"weights": self.weights}),
        }


class Retrieval:
    """Every image and caption of a split, encoded once by each model, ready to be ranked.

    An ensemble averages *similarities*, as the paper does, so its models may be of any kinds and sizes.

    weights     how much each model counts; None for all alike
    batch_size  images, and captions, encoded at a time; None for what each model's kind does best
    stages      how often `ranks` compares each image

    Raises what `check_weights` and `Encoder.encode_split` raise.
    """

    stages = 1

    def __init__(
        self,
        encoders: Sequence[Encoder],
        split: CaptionedImages,
        advance: Advance = lambda _: None,
        *,
        weights: Sequence[float] | None = None,
        batch_size: int | None = None,
    ) -> None:
        check_weights(weights, len(encoders))
        self.split, self.weights = split, weights if len(encoders) > 1 else None
        self.unknown_share = max(encoder.vocabulary.unknown_share(split.captions) for encoder in encoders)
        self.encoded = [encoder.encode_split(split, advance, batch_size=batch_size) for encoder in encoders]

    def part(self, images: IntArray) -> tuple[list[EncodedSplit], IntArray, IntArray]:
        """These images and their captions as each model encoded them, those captions, and which image each has."""
        captions = np.flatnonzero(np.isin(self.split.image_of_caption, images))
        encoded = [each.only(images, captions) for each in self.encoded]
        return encoded, captions, self.split.only(images).image_of_caption

    def ranks(self, images: IntArray, advance: Advance = lambda _: None) -> tuple[Ranks, IntArray]:
        """Ranks among these images and their captions alone, and the image of each of these captions.

        `advance` is called after each block with the number of its images.
        """
        encoded, _, owners = self.part(images)
        return rank_encoded(encoded, owners, advance, self.weights), owners

    def blocks(self) -> Blocks:
        """Similarities of all images and all captions, block by block."""
        return similarity_blocks(self.encoded, weights=self.weights)

    def query(self, place: int, *, is_caption: bool) -> tuple[FloatArray, BoolArray]:
        """Similarities of one image to all captions, or of one caption to all images, and which matches are true."""
        owners = self.split.image_of_caption
        correct = np.arange(self.split.num_images) == owners[place] if is_caption else owners == place
        return similarities_of(place, EVERY, self.encoded, self.weights, is_caption=is_caption), correct

    def reranking(self) -> Reranking | None:
        """What a second stage gained and cost; None where there is none."""
        return None


def similarities_of(
    place: int,
    matches: IntArray | slice,
    encoded: Sequence[EncodedSplit],
    weights: Sequence[float] | None = None,
    *,
    is_caption: bool,
) -> FloatArray:
    """(matches,) mean similarities, over models, of one image to some captions or of one caption to some images."""
    sides = [each.turned() if is_caption else each for each in encoded]
    return mean_of((side.only(np.array([place]), matches).similarities()[0] for side in sides), weights)


def check_weights(weights: Sequence[float] | None, models: int) -> None:
    """Raise `ConfigError` where there is not one weight per model, or one is negative, or none is above 0."""
    if weights is None:
        return
    if len(weights) != models:
        raise ConfigError(f"there are {len(weights)} weights for {models} models; give one per model.")
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise ConfigError(f"the weights {' '.join(map(str, weights))} are no shares; give numbers above 0.")


def evaluate(
    retrieval: Retrieval,
    models: Sequence[str],
    *,
    five_fold: bool = False,
    num_examples: int = 0,
    advance: Advance = lambda _: None,
    seed: int = 0,
) -> Evaluation:
    """Recall@K both ways with 95% intervals, a few examples, and the ranks they were counted from.

    five_fold  average over consecutive blocks of 1,000 images (COCO 1K, read from `testall`);
               the ranks are then those within each block, one block after another
    advance    called with the number of images that were compared since the last call
    seed       of the draws that the intervals come from

    Raises `SimilarityError` where a similarity is NaN, or the images do not divide into folds.
    """
    split = retrieval.split
    everything = np.arange(split.num_images)
    parts = [everything[fold] for fold in five_folds(split.num_images)] if five_fold else [everything]
    return replace(
        summary([retrieval.ranks(images, advance) for images in parts], seed),
        models=list(models),
        data=str(split.folder),
        split=split.name,
        examples=_examples(retrieval, num_examples),
        reranking=retrieval.reranking(),
        has_ids=split.has_ids,
        unknown_share=retrieval.unknown_share,
        weights=None if retrieval.weights is None else list(retrieval.weights),
    )


def summary(folds: Sequence[tuple[Ranks, IntArray]], seed: int = 0) -> Evaluation:
    """The metrics and intervals of the ranks of one or more folds, each with its `image_of_caption`, of no model."""
    ranks = Ranks(
        image_to_text=np.concatenate([found.image_to_text for found, _ in folds]),
        text_to_image=np.concatenate([found.text_to_image for found, _ in folds]),
    )
    return Evaluation(
        models=[],
        data="",
        split="",
        num_images=len(ranks.image_to_text),
        num_captions=len(ranks.text_to_image),
        num_folds=len(folds),
        metrics=retrieval_metrics(*(found for found, _ in folds)),
        intervals=bootstrap_intervals(folds, seed=seed),
        ranks=ranks,
    )


def best_matches(similarities: FloatArray, top: int, correct: BoolArray | None = None) -> IntArray:
    """(min(top, M),) places of the largest of (M,) similarities, largest first.

    Among equals the wrong ones come first, where `correct` (M,) says which are right, and then the earlier ones.

    >>> best_matches(np.array([0.5, 0.9, 0.5, 0.1]), 2, np.array([True, False, False, False]))
    array([1, 2])
    """
    top = min(top, len(similarities))
    worst = np.partition(similarities, -top)[-top]
    places = np.flatnonzero(similarities >= worst)
    ties = () if correct is None else (correct[places],)
    return places[np.lexsort((*ties, -similarities[places]))[:top]]


def write_captions(
    encoder: Encoder, split: Split, beam: int = DEFAULT_BEAM, advance: Advance = lambda _: None
) -> list[str]:
    """A caption for each image of a split, in their order; `advance` is called with the size of each finished batch.

    Raises `CheckpointError` where the model has no captioner, and `DataError` where the split's regions are not what
    it learned from.
    """
    encoder.check_split(split)
    written: list[str] = []
    for first in range(0, split.num_images, IMAGES_AT_ONCE):
        images = np.arange(first, min(first + IMAGES_AT_ONCE, split.num_images))
        features, counts = split.read_images(images)
        written += encoder.caption_regions(features, counts, beam)
        advance(len(images))
    return written


def _examples(retrieval: Retrieval, number: int) -> list[Example]:
    """Queries spread evenly over the split, half of them sentences and half images."""
    captions = _spread(len(retrieval.split.captions), number - number // 2)
    images = _spread(retrieval.split.num_images, number // 2)
    return [
        *(_example(retrieval, caption, is_caption=True) for caption in captions),
        *(_example(retrieval, image, is_caption=False) for image in images),
    ]


def _example(retrieval: Retrieval, place: int, *, is_caption: bool) -> Example:
    """One query with its best matches; ties count against it."""
    ids, captions = retrieval.split.image_ids(), retrieval.split.captions
    queries, texts = (captions, ids) if is_caption else (ids, captions)
    similarities, correct = retrieval.query(place, is_caption=is_caption)
    best = best_matches(similarities, MATCHES_SHOWN, correct)
    matches = [Match(texts[match], float(similarities[match]), bool(correct[match])) for match in best]
    rank = int((similarities[~correct] >= similarities[correct].max()).sum())
    return Example("text_to_image" if is_caption else "image_to_text", queries[place], rank, matches)


def _spread(total: int, number: int) -> list[int]:
    """Up to `number` places spread evenly over `total`."""
    return [int(place) for place in np.unique(np.linspace(0, total - 1, min(number, total)).round())]
