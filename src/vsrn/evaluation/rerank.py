"""Two stages: one model finds, and a second one, too slow to compare everything, re-orders the best few.

The first `top` matches of every query take the order that the second model gives them; all others keep their places
after these. Images and captions are both queries, so a pair may be needed for its image, its caption or both; it is
compared once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from vsrn.data.splits import CaptionedImages
from vsrn.encoders.base import Encoder
from vsrn.encoders.ranking import rank_encoded
from vsrn.errors import ConfigError
from vsrn.evaluation.evaluate import BoolArray, Reranking, Retrieval, best_matches, similarities_of
from vsrn.metrics import (
    Advance,
    EncodedSplit,
    FloatArray,
    IntArray,
    Ranks,
    check_no_nan,
    retrieval_metrics,
    similarity_blocks,
)


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
        first, captions, owners = self.part(images)
        found = rank_encoded(first, owners, advance, self.weights)
        self.found.append(found)
        to_text, to_image = candidates(first, owners, self.top, self.weights)
        halfway = time.perf_counter()
        ranks = reranked(found, owners, self.second.only(images, captions), to_text, to_image, advance)
        self.seconds[0] += halfway - started
        self.seconds[1] += time.perf_counter() - halfway
        return ranks, owners

    def reranking(self) -> Reranking:
        """What the second stage started from, and what it cost."""
        alone = retrieval_metrics(*self.found)
        return Reranking(self.name, self.top, alone, first_seconds=self.seconds[0], second_seconds=self.seconds[1])

    def query(self, place: int, *, is_caption: bool) -> tuple[FloatArray, BoolArray]:
        """Scores of one query's matches in the order after both stages, and which of them are true."""
        found, correct = super().query(place, is_caption=is_caption)
        best = best_matches(found, self.top, correct)
        scores = similarities_of(place, best, [self.second], is_caption=is_caption)
        _, from_last = np.unique(found, return_inverse=True)
        after = scores.min() - 1.0 - (from_last.max() - from_last)
        after[best] = scores
        return after, correct


def candidates(
    first: Sequence[EncodedSplit], owners: IntArray, top: int, weights: Sequence[float] | None = None
) -> tuple[IntArray, IntArray]:
    """The best K captions of every image (num_images, K), and the best K images of every caption (num_captions, K).

    first   the first stage's models, which count as the weights say
    owners  (num_captions,) the image of each caption
    top     K, where there are as many
    """
    images = np.arange(len(first[0].images))
    turned = [each.turned() for each in first]
    return _best(first, top, images, owners, weights), _best(turned, top, owners, images, weights)


def _best(
    models: Sequence[EncodedSplit], top: int, rows: IntArray, columns: IntArray, weights: Sequence[float] | None
) -> IntArray:
    """Places of every query's best matches; `rows` and `columns` are the images of the queries and of the matches."""
    return np.stack(
        [
            best_matches(row, top, columns == rows[query])
            for start, block in similarity_blocks(models, weights=weights)()
            for query, row in enumerate(block, start=start)
        ]
    )


def reranked(
    found: Ranks,
    owners: IntArray,
    second: EncodedSplit,
    to_text: IntArray,
    to_image: IntArray,
    advance: Advance = lambda _: None,
) -> Ranks:
    """Ranks after the second model re-ordered both kinds of `candidates`.

    found   ranks by the first stage
    owners  (num_captions,) the image of each caption

    It goes image by image; an image is compared with the captions that it found and those that found it. `advance` is
    called with 1 after each. Raises `SimilarityError` where a similarity is NaN.
    """
    text_scores = np.empty(to_text.shape, dtype=np.float32)
    image_scores = np.empty(to_image.shape, dtype=np.float32)
    finders = np.argsort(to_image, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(to_image.ravel(), minlength=len(to_text)))
    for image, texts in enumerate(to_text):
        found_by = finders[ends[image - 1] if image else 0 : ends[image]]
        captions, places = np.unique(np.concatenate([texts, found_by // to_image.shape[1]]), return_inverse=True)
        scores = second.only(np.array([image]), captions).similarities()[0][places]
        check_no_nan(scores)
        text_scores[image] = scores[: len(texts)]
        image_scores.reshape(-1)[found_by] = scores[len(texts) :]
        advance(1)
    images = np.arange(len(to_text))[:, None]
    return Ranks(
        image_to_text=rerank(found.image_to_text, owners[to_text] == images, text_scores),
        text_to_image=rerank(found.text_to_image, to_image == owners[:, None], image_scores),
    )


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
