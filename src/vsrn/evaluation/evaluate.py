"""One model, or several as an ensemble, on one split: Recall@K both ways; the parts of `vsrn.evaluation.measure`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vsrn import metrics
from vsrn.data.splits import CaptionedImages, Split
from vsrn.encoders.base import DEFAULT_BEAM, Encoder
from vsrn.encoders.inputs import IMAGES_AT_ONCE, slices
from vsrn.encoders.ranking import rank_encoded
from vsrn.errors import ConfigError
from vsrn.evaluation.rerank import best_matches, candidates, reranked
from vsrn.metrics import (
    Advance,
    Blocks,
    DirectionMetrics,
    EncodedSplit,
    FloatArray,
    IntArray,
    Interval,
    Ranks,
    RetrievalMetrics,
)

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
        names = ("models", "data", "split", "num_images", "num_captions", "num_folds")
        return {
            **{name: getattr(self, name) for name in names},
            "unknown_share": round(self.unknown_share, 6),
            **self.metrics.to_json(),
            "intervals_95": metrics.intervals_json(self.intervals),
            **({} if self.reranking is None else {"reranking": self.reranking.to_json()}),
            **({} if self.weights is None else {"weights": self.weights}),
        }


class Retrieval:
    """Every image and caption of a split, encoded once by each model, ready to be ranked.

    An ensemble averages *similarities*, as the paper does, so its models may be of any kinds and sizes.

    weights      how much each model counts; None for all alike
    second, top  a model that re-orders the best `top` matches of every query
    name         of the second model, for the report
    batch_size   images, and captions, encoded at a time; None for what each model's kind does best

    Raises `ConfigError` where `top` is below 1, and what `check_weights` and `Encoder.encode_split` raise.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        split: CaptionedImages,
        advance: Advance = lambda _: None,
        *,
        weights: Sequence[float] | None = None,
        second: Encoder | None = None,
        name: str = "",
        top: int = 1,
        batch_size: int | None = None,
    ) -> None:
        check_weights(weights, len(encoders))
        if second is not None and top < 1:
            raise ConfigError(f"--top is {top}; let the second model re-order 1 match or more.")
        started = time.perf_counter()
        self.split, self.weights, self.name, self.top = split, weights if len(encoders) > 1 else None, name, top
        self.unknown_share = max(encoder.vocabulary.unknown_share(split.captions) for encoder in encoders)
        self.encoded = [encoder.encode_split(split, advance, batch_size=batch_size) for encoder in encoders]
        halfway = time.perf_counter()
        self.second = None if second is None else second.encode_split(split, advance, batch_size=batch_size)
        self.seconds = [halfway - started, time.perf_counter() - halfway]
        self.found: list[Ranks] = []

    def ranks(self, images: IntArray, advance: Advance = lambda _: None) -> tuple[Ranks, IntArray]:
        """Ranks among these images and their captions alone, and the image of each of these captions.

        `advance` is called with numbers of images, each image once a stage.
        """
        started = time.perf_counter()
        captions = np.flatnonzero(np.isin(self.split.image_of_caption, images))
        owners = self.split.only(images).image_of_caption
        first = [each.only(images, captions) for each in self.encoded]
        found = rank_encoded(first, owners, advance, self.weights)
        if self.second is None:
            return found, owners
        self.found.append(found)
        chosen = candidates(first, owners, self.top, self.weights)
        halfway = time.perf_counter()
        ranks = reranked(found, owners, self.second.only(images, captions), *chosen, advance)
        self.seconds[0] += halfway - started
        self.seconds[1] += time.perf_counter() - halfway
        return ranks, owners

    def blocks(self) -> Blocks:
        """Similarities of all images and all captions by the first stage, block by block."""
        return metrics.similarity_blocks(self.encoded, weights=self.weights)

    def example(self, place: int, *, is_caption: bool) -> Example:
        """One caption or image with its best matches; ties count against it.

        With a second stage similarities are scores in the order after it.
        """
        ids, captions, owners = self.split.image_ids(), self.split.captions, self.split.image_of_caption
        queries, texts = (captions, ids) if is_caption else (ids, captions)
        correct = np.arange(len(ids)) == owners[place] if is_caption else owners == place
        first, second = self.encoded, [] if self.second is None else [self.second]
        if is_caption:
            first, second = ([each.turned() for each in models] for models in (first, second))
        found = _row(first, place, metrics.EVERY, self.weights)
        if second:
            best = best_matches(found, self.top, correct)
            scores = _row(second, place, best)
            _, from_last = np.unique(found, return_inverse=True)
            found = scores.min() - 1.0 - (from_last.max() - from_last)
            found[best] = scores
        shown = best_matches(found, MATCHES_SHOWN, correct)
        matches = [Match(texts[match], float(found[match]), bool(correct[match])) for match in shown]
        rank = int((found[~correct] >= found[correct].max()).sum())
        return Example("text_to_image" if is_caption else "image_to_text", queries[place], rank, matches)

    def reranking(self) -> Reranking | None:
        """What the second stage started from, and what it cost; None where there is none."""
        if self.second is None:
            return None
        return Reranking(self.name, self.top, metrics.retrieval_metrics(*self.found), *self.seconds)


def _row(
    models: Sequence[EncodedSplit], image: int, captions: IntArray | slice, weights: Sequence[float] | None = None
) -> FloatArray:
    """(captions,) mean similarities of an image to some captions."""
    return metrics.mean_of((each.only(np.array([image]), captions).similarities()[0] for each in models), weights)


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

    five_fold  average over consecutive blocks of 1,000 images (COCO 1K, of `testall`); ranks are then within a block
    advance    called with the number of images that were compared since the last call
    seed       of the draws that the intervals come from

    Raises `SimilarityError` where a similarity is NaN, or the images do not divide into folds.
    """
    split = retrieval.split
    everything = np.arange(split.num_images)
    parts = [everything[fold] for fold in metrics.five_folds(split.num_images)] if five_fold else [everything]
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
        metrics=metrics.retrieval_metrics(*(found for found, _ in folds)),
        intervals=metrics.bootstrap_intervals(folds, seed=seed),
        ranks=ranks,
    )


def write_captions(
    encoder: Encoder, split: Split, beam: int = DEFAULT_BEAM, advance: Advance = lambda _: None
) -> list[str]:
    """A caption for each image of a split, in their order; `advance` is called with the size of each finished batch.

    Raises `CheckpointError` where the model has no captioner, and `DataError` where the split's regions are not what
    it learned from.
    """
    encoder.check_split(split)
    written: list[str] = []
    for part in slices(split.num_images, IMAGES_AT_ONCE):
        images = np.arange(part.start, part.stop)
        features, counts = split.read_images(images)
        written += encoder.caption_regions(features, counts, beam)
        advance(len(images))
    return written


def _examples(retrieval: Retrieval, number: int) -> list[Example]:
    """Queries spread evenly over the split, half of them sentences and half images."""
    examples = []
    captions, images = len(retrieval.split.captions), retrieval.split.num_images
    for total, wanted, is_caption in ((captions, number - number // 2, True), (images, number // 2, False)):
        places = np.unique(np.linspace(0, total - 1, min(wanted, total)).round()).astype(int)
        examples += [retrieval.example(place, is_caption=is_caption) for place in places.tolist()]
    return examples
