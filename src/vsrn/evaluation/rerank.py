"""Two stages: one model finds, and a second one, too slow to compare everything, re-orders the best few.

The first `top` matches of every query take the order that the second model gives them; all others keep their places
after these. Images and captions are both queries, so a pair may be needed for its image, its caption or both; it is
compared once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsrn.data.splits import CaptionedImages
from vsrn.encoders.base import Encoder
from vsrn.errors import ConfigError
from vsrn.evaluation.evaluate import BoolArray, Reranking, Retrieval, best_matches, mean_similarities
from vsrn.metrics import (
    EVERY,
    Advance,
    EncodedSplit,
    FloatArray,
    IntArray,
    Ranks,
    check_no_nan,
    mean_metrics,
    retrieval_metrics,
    rows_of_block,
    similarity_blocks,
)


@dataclass(frozen=True)
class Candidates:
    """The best few matches of each query.

    matches  (num_queries, K) their places
    correct  (num_queries, K) which of them are true
    """

    matches: IntArray
    correct: BoolArray


class TwoStageRetrieval(Retrieval):
    """A `Retrieval` whose best `top` matches of every query are re-ordered by a second model.

    name  of the second model, for the report

    Raises `ConfigError` where `top` is below 1, and what `Retrieval` raises.
    """

    stages = 2

    def __init__(
        self,
        encoders: Sequence[Encoder],
        second: Encoder,
        split: CaptionedImages,
        *,
        name: str,
        top: int,
        advance: Advance = lambda _: None,
        weights: Sequence[float] | None = None,
        batch_size: int | None = None,
    ) -> None:
        if top < 1:
            raise ConfigError(f"--top is {top}; let the second model re-order 1 match or more.")
        started = time.perf_counter()
        super().__init__(encoders, split, advance, weights=weights, batch_size=batch_size)
        encoded = time.perf_counter()
        self.second, self.name, self.top = second.encode_split(split, advance, batch_size=batch_size), name, top
        self.seconds = [encoded - started, time.perf_counter() - encoded]
        self.found: list[Ranks] = []

    def ranks(self, images: IntArray, advance: Advance = lambda _: None) -> tuple[Ranks, IntArray]:
        """Ranks after both stages, and the image of each caption; `advance` is told of each image twice."""
        started = time.perf_counter()
        found, owners = super().ranks(images, advance)
        self.found.append(found)
        captions = np.flatnonzero(np.isin(self.split.image_of_caption, images))
        first = [encoded.only(images, captions) for encoded in self.encoded]
        to_text = text_candidates(first, owners, self.top, self.weights)
        to_image = image_candidates(first, owners, self.top, self.weights)
        halfway = time.perf_counter()
        scores = compare_candidates(self.second.only(images, captions), to_text, to_image, advance)
        ranks = Ranks(
            image_to_text=rerank(found.image_to_text, to_text.correct, scores[0]),
            text_to_image=rerank(found.text_to_image, to_image.correct, scores[1]),
        )
        self.seconds[0] += halfway - started
        self.seconds[1] += time.perf_counter() - halfway
        return ranks, owners

    def reranking(self) -> Reranking:
        """What the second stage started from, and what it cost."""
        alone = mean_metrics([retrieval_metrics(ranks) for ranks in self.found])
        return Reranking(self.name, self.top, alone, first_seconds=self.seconds[0], second_seconds=self.seconds[1])

    def of_caption(self, caption: int) -> FloatArray:
        """(num_images,) scores of every image for one caption, in the order after both stages."""
        found, correct = super().of_caption(caption), np.arange(self.split.num_images)
        best = best_matches(found, self.top, correct == self.split.image_of_caption[caption])
        return _after(found, best, self.second.only(best, np.array([caption])).similarities()[:, 0])

    def of_image(self, image: int) -> FloatArray:
        """(num_captions,) scores of every caption for one image, in the order after both stages."""
        found = super().of_image(image)
        best = best_matches(found, self.top, self.split.image_of_caption == image)
        return _after(found, best, self.second.only(np.array([image]), best).similarities()[0])


def text_candidates(
    first: Sequence[EncodedSplit], owners: IntArray, top: int, weights: Sequence[float] | None = None
) -> Candidates:
    """The best `top` captions of every image, by the first stage, whose models count as the weights say."""
    matches = np.stack(
        [
            best_matches(row, top, owners == image)
            for start, block in similarity_blocks(first, weights=weights)()
            for image, row in enumerate(block, start=start)
        ]
    )
    return Candidates(matches, owners[matches] == np.arange(len(matches))[:, None])


def image_candidates(
    first: Sequence[EncodedSplit], owners: IntArray, top: int, weights: Sequence[float] | None = None
) -> Candidates:
    """The best `top` images of every caption, by the first stage, whose models count as the weights say."""
    places, rows = np.arange(len(first[0].images)), []
    at_once = rows_of_block(len(places))
    for start in range(0, len(owners), at_once):
        captions = slice(start, start + at_once)
        columns = mean_similarities(first, EVERY, captions, weights).T
        rows += [
            best_matches(column, top, places == owner) for column, owner in zip(columns, owners[captions], strict=True)
        ]
    matches = np.stack(rows)
    return Candidates(matches, matches == owners[:, None])


def compare_candidates(
    second: EncodedSplit, to_text: Candidates, to_image: Candidates, advance: Advance = lambda _: None
) -> tuple[FloatArray, FloatArray]:
    """The second model's similarities of the candidates: (num_images, K) and (num_captions, K).

    It goes image by image; an image is compared with the captions that it found and those that found it. `advance` is
    called with 1 after each.
    """
    text_scores = np.empty(to_text.matches.shape, dtype=np.float32)
    image_scores = np.empty(to_image.matches.shape, dtype=np.float32)
    num_images, per_caption = len(to_text.matches), to_image.matches.shape[1]
    finders = np.argsort(to_image.matches, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(to_image.matches.ravel(), minlength=num_images))
    for image, found in enumerate(to_text.matches):
        found_by = finders[ends[image - 1] if image else 0 : ends[image]]
        captions, places = np.unique(np.concatenate([found, found_by // per_caption]), return_inverse=True)
        scores = second.only(np.array([image]), captions).similarities()[0][places]
        text_scores[image] = scores[: len(found)]
        image_scores.reshape(-1)[found_by] = scores[len(found) :]
        advance(1)
    check_no_nan(text_scores)
    check_no_nan(image_scores)
    return text_scores, image_scores


def rerank(ranks: IntArray, correct: BoolArray, scores: FloatArray) -> IntArray:
    """Ranks, from 0, after the candidates took the order of their scores; a tie counts against the query.

    ranks    (num_queries,) before
    correct  (num_queries, K) which candidates are true
    scores   (num_queries, K) by the second model

    A query whose true match is no candidate keeps its rank.

    >>> rerank(np.array([1, 7]), np.array([[False, True], [False, False]]), np.array([[0.1, 0.3], [0.5, 0.4]]))
    array([0, 7])
    """
    best = np.where(correct, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ((scores >= best) & ~correct).sum(axis=1)
    return np.where(correct.any(axis=1), ahead, ranks)


def _after(found: FloatArray, best: IntArray, scores: FloatArray) -> FloatArray:
    """One query's scores: the second model's for its candidates, and the rest after them as they were found."""
    _, from_last = np.unique(found, return_inverse=True)
    after = scores.min() - 1.0 - (from_last.max() - from_last)
    after[best] = scores
    return after
