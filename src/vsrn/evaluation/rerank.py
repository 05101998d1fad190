"""Two stages: one model finds, and a second one, too slow to compare everything, re-orders the best few.

All other matches of a query, image or caption, keep their places after these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vsrn.metrics import Advance, EncodedSplit, FloatArray, IntArray, Ranks, check_no_nan, similarity_blocks

BoolArray = npt.NDArray[np.bool_]


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


def candidates(
    first: Sequence[EncodedSplit], owners: IntArray, top: int, weights: Sequence[float] | None = None
) -> tuple[IntArray, IntArray]:
    """The best K captions of every image (num_images, K), and the best K images of every caption (num_captions, K).

    first   the first stage's models, which count as the weights say
    owners  (num_captions,) the image of each caption
    top     K, where there are as many

    Raises `SimilarityError` where a similarity is NaN.
    """
    images = np.arange(len(first[0].images))
    turned = [each.turned() for each in first]
    return _best(first, top, images, owners, weights), _best(turned, top, owners, images, weights)


def _best(
    models: Sequence[EncodedSplit], top: int, rows: IntArray, columns: IntArray, weights: Sequence[float] | None
) -> IntArray:
    """Places of every query's best matches; `rows` and `columns` are the images of the queries and of the matches."""
    found = []
    for first, block in similarity_blocks(models, weights=weights)():
        check_no_nan(block)
        # What was turned has its rows scattered in memory.
        for query, row in enumerate(np.ascontiguousarray(block), start=first):
            found.append(best_matches(row, top, columns == rows[query]))
    return np.stack(found)


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

    An image is compared once with the captions that it found and those that found it, and `advance` is called with 1.
    Raises `SimilarityError` where a similarity is NaN.
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
        image_to_text=_after(found.image_to_text, owners[to_text] == images, text_scores),
        text_to_image=_after(found.text_to_image, to_image == owners[:, None], image_scores),
    )


def _after(ranks: IntArray, correct: BoolArray, scores: FloatArray) -> IntArray:
    """Ranks after candidates took the order of their scores; a query whose true match is no candidate keeps its own.

    ranks            (num_queries,) before
    correct, scores  (num_queries, K) which candidates are true, and their scores, of which ties count against the query
    """
    best = np.where(correct, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ((scores >= best) & ~correct).sum(axis=1)
    return np.where(correct.any(axis=1), ahead, ranks)
