"""Similarities and a correspondence in, ranks and Recall@K out. Torch-free.

S is (num_images, num_captions) similarities, larger is closer; `image_of_caption` is (num_captions,) the row of each
caption's image. S of a large split need not exist: every function that ranks takes *blocks*, an iterable of
(first_image, S[first_image : first_image + rows]).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vsrn.errors import SimilarityError

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

Block = tuple[int, FloatArray]
Blocks = Callable[[], Iterable[Block]]
# Called with how many were done since the last call.
Advance = Callable[[int], None]

RECALL_AT = (1, 5, 10)
BLOCK_BYTES = 2**26
KEPT_BYTES = 2**29
FIVE_FOLD_IMAGES = 1000
EVERY = slice(None)


def inner_products(images: FloatArray, captions: FloatArray) -> FloatArray:
    """(I, D), (C, D) -> (I, C)."""
    return np.asarray(images @ captions.T)


def order_similarities(images: FloatArray, captions: FloatArray) -> FloatArray:
    """(I, D), (C, D) -> (I, C): -|| max(0, c - i) ||_2 (Vendrov et al. 2016, order embeddings), image by image."""
    return np.stack([-np.sqrt((np.maximum(captions - image, 0) ** 2).sum(axis=1)) for image in images])


SIMILARITIES = {"cosine": inner_products, "order": order_similarities}


@dataclass(frozen=True)
class Ranks:
    """Rank, from 0, of the true match of every query; a tie counts against the query.

    image_to_text  (num_images,) the best-placed true caption of each image
    text_to_image  (num_captions,) the image of each caption
    """

    image_to_text: IntArray
    text_to_image: IntArray


@dataclass(frozen=True)
class DirectionMetrics:
    """How one direction does: recalls in percent of queries, ranks counted from 1."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float

    @property
    def recalls(self) -> tuple[float, float, float]:
        """R@1, R@5 and R@10, in percent."""
        return self.recall_at_1, self.recall_at_5, self.recall_at_10

    @property
    def average_recall(self) -> float:
        """Mean of R@1, R@5 and R@10, in percent."""
        return sum(self.recalls) / 3

    def to_json(self) -> dict[str, float]:
        """Every number of this direction, to two places."""
        names = (*(f"recall_at_{k}" for k in RECALL_AT), "average_recall", "median_rank", "mean_rank")
        return {name: round(getattr(self, name), 2) for name in names}


@dataclass(frozen=True)
class RetrievalMetrics:
    """Both directions of image-text retrieval."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, 0 to 600."""
        return sum(self.image_to_text.recalls) + sum(self.text_to_image.recalls)

    def to_json(self) -> dict[str, Any]:
        """Every number of both directions, to two places."""
        return {
            "rsum": round(self.rsum, 2),
            "image_to_text": self.image_to_text.to_json(),
            "text_to_image": self.text_to_image.to_json(),
        }


def rank_blocks(blocks: Blocks, image_of_caption: IntArray) -> Ranks:
    """Ranks of both directions from similarities that are made block by block.

    A rank is a count of what is at least as similar as the match, so nothing is sorted; rows are counted one by one
    because a row stays in the processor's cache. The blocks are asked for twice, since every caption's own similarity
    must be known before others are counted against it. Memory: one block and a few numbers per query.

    image_of_caption  (num_captions,) the row of the image that a caption belongs to

    Raises `SimilarityError` on NaN, or where an image has no caption, or a caption no image.

    >>> similarities = np.array([[0.9, 0.1], [0.8, 0.3]])
    >>> rank_blocks(lambda: [(0, similarities)], np.array([0, 1]))
    Ranks(image_to_text=array([0, 1]), text_to_image=array([0, 0]))
    """
    order = np.argsort(image_of_caption, kind="stable")
    owners = image_of_caption[order]
    own, image_to_text = np.full(len(image_of_caption), np.nan), []
    for first, block in blocks():
        own = own.astype(block.dtype, copy=False)
        for image, row in enumerate(block, start=first):
            check_no_nan(row, f" of image {image}")
            captions = order[slice(*np.searchsorted(owners, (image, image + 1)))]
            if not len(captions):
                raise SimilarityError(f"image {image} has no caption, so no caption of its own can be ranked for it.")
            own[captions] = row[captions]
            best = row[captions].max()
            image_to_text.append(np.count_nonzero(row >= best) - np.count_nonzero(row[captions] >= best))
    if np.isnan(own).any():
        caption = int(np.flatnonzero(np.isnan(own))[0])
        raise SimilarityError(
            f"caption {caption} belongs to image {image_of_caption[caption]}, which has no similarities."
        )
    # Its own image always counts itself once.
    text_to_image = np.full(len(image_of_caption), -1)
    for _, block in blocks():
        for row in block:
            text_to_image += row >= own
    return Ranks(image_to_text=np.array(image_to_text), text_to_image=text_to_image)


@dataclass(frozen=True)
class EncodedSplit:
    """Images and captions as one model encodes them, once each, and how it compares them.

    images          (num_images, D) embeddings, or what has a length and is indexed by rows as an array is
    captions        (num_captions, D), or the same
    compare         some images, some captions -> (images, captions) similarities
    images_at_once  how many images to compare in one call with all captions; 0 for as many as fill a block
    device          where the model computes, as torch calls it, such as "cuda:0"; the arrays themselves are numpy's
    """

    images: Any
    captions: Any
    compare: Callable[[Any, Any], FloatArray] = inner_products
    images_at_once: int = 0
    device: str = "cpu"

    def only(self, images: IntArray | slice, captions: IntArray | slice) -> EncodedSplit:
        """These images and these captions alone, in this order."""
        return dataclasses.replace(self, images=self.images[images], captions=self.captions[captions])

    def turned(self) -> EncodedSplit:
        """The same with captions in the place of images."""
        return EncodedSplit(self.captions, self.images, lambda captions, images: self.compare(images, captions).T)

    def similarities(self, images: slice = EVERY) -> FloatArray:
        """(images, num_captions) similarities of a range of images with all captions."""
        return self.compare(self.images[images], self.captions)


def rows_of_block(captions: int, block_bytes: int = BLOCK_BYTES) -> int:
    """How many images' float32 similarities to so many captions fill a block."""
    return max(1, block_bytes // (4 * max(1, captions)))


def similarity_blocks(
    models: Sequence[EncodedSplit],
    advance: Advance = lambda _: None,
    block_bytes: int = BLOCK_BYTES,
    weights: Sequence[float] | None = None,
) -> Blocks:
    """Blocks of the mean similarity of one or more models (an ensemble averages *similarities*).

    advance  called with the number of images of each finished block
    weights  how much each model counts, divided by their sum; None for all alike
    """
    images, captions = len(models[0].images), len(models[0].captions)
    rows = min(model.images_at_once or rows_of_block(captions, block_bytes) for model in models)

    def make() -> Iterator[Block]:
        for first in range(0, images, rows):
            block = mean_of((model.similarities(slice(first, first + rows)) for model in models), weights)
            advance(len(block))
            yield first, block

    if 4 * images * captions > KEPT_BYTES:
        return make
    # Small enough to be made once and kept for the second pass.
    return functools.cache(lambda: list(make()))


def mean_of(parts: Iterable[FloatArray], weights: Sequence[float] | None = None) -> FloatArray:
    """The mean of arrays of one shape, one after the other in memory; `weights` are divided by their sum.

    >>> mean_of([np.array([0.0, 1.0]), np.array([1.0, 1.0])], [3, 1])
    array([0.25, 1.  ])
    """
    total = None
    for number, part in enumerate(parts):
        weighted = part if weights is None else part * float(weights[number])
        total, count = weighted if total is None else total + weighted, number + 1
    assert total is not None, "a mean of nothing"
    whole = count if weights is None else float(sum(weights))
    return np.asarray(total if whole == 1 else total / whole)


def recall_at(ranks: IntArray, k: int) -> float:
    """Share of queries, in percent, whose true match is among the first k.

    >>> recall_at(np.array([0, 3, 7, 20]), 5)
    50.0
    """
    return 100.0 * float(np.count_nonzero(ranks < k)) / len(ranks)


def direction_metrics(*folds: IntArray) -> DirectionMetrics:
    """Summary of one direction's ranks, each number a mean over folds; ranks are counted from 1, as the field does."""
    numbers = [
        [*(recall_at(ranks, k) for k in RECALL_AT), np.floor(np.median(ranks)) + 1, ranks.mean() + 1] for ranks in folds
    ]
    return DirectionMetrics(*np.mean(numbers, axis=0).tolist())


def retrieval_metrics(*folds: Ranks) -> RetrievalMetrics:
    """Summary of both directions, each number a mean over folds."""
    return RetrievalMetrics(
        direction_metrics(*(ranks.image_to_text for ranks in folds)),
        direction_metrics(*(ranks.text_to_image for ranks in folds)),
    )


def five_folds(num_images: int) -> list[slice]:
    """Blocks of 1,000 images, which COCO's 1K protocol averages over. Raises `SimilarityError` where some are left."""
    if num_images == 0 or num_images % FIVE_FOLD_IMAGES:
        raise SimilarityError(
            f"folds are blocks of {FIVE_FOLD_IMAGES:,} images, and {num_images:,} images do not divide into them;"
            " leave out --five-fold, or evaluate COCO's testall split."
        )
    return [slice(first, first + FIVE_FOLD_IMAGES) for first in range(0, num_images, FIVE_FOLD_IMAGES)]


@dataclass(frozen=True)
class Interval:
    """A 95% bootstrap interval, in the metric's own unit."""

    low: float
    high: float


def intervals_json(intervals: dict[str, Interval]) -> dict[str, list[float]]:
    """Both ends of each interval, to two places."""
    return {name: [round(interval.low, 2), round(interval.high, 2)] for name, interval in intervals.items()}


def bootstrap_intervals(
    folds: Sequence[tuple[Ranks, IntArray]], *, samples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """95% percentile intervals of the six recalls and rsum, resampling *images*.

    folds  ranks and `image_of_caption` of each fold, whose recalls are averaged; usually one

    An image is drawn together with all its captions, since they are not independent of each other.
    Keys: "image_to_text.recall_at_1" ... "text_to_image.recall_at_10", "rsum".
    """
    generator = np.random.default_rng(seed)
    drawn = [
        resampled_recalls(ranks, owners, draw_images(len(ranks.image_to_text), samples, generator))
        for ranks, owners in folds
    ]
    recalls = {name: np.mean([fold[name] for fold in drawn], axis=0) for name in drawn[0]}
    recalls["rsum"] = np.sum(list(recalls.values()), axis=0)
    return {name: percentile_interval(values) for name, values in recalls.items()}


def check_no_nan(similarities: FloatArray, whose: str = "") -> None:
    """Raise `SimilarityError` where a similarity is NaN: it would compare false and flatter the model.

    whose  words that say which similarities these are, such as " of image 3"
    """
    # The smallest number is NaN where any is, and finding it takes no second array.
    if np.isnan(similarities.min(initial=np.inf)):
        raise SimilarityError(
            f"a similarity{whose} is NaN, so nothing can be ranked; the model or its features are broken."
        )


def draw_images(num_images: int, samples: int, generator: np.random.Generator) -> IntArray:
    """(samples, num_images) how often each image is in a sample of as many images, drawn with replacement."""
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=samples)


def resampled_recalls(ranks: Ranks, image_of_caption: IntArray, draws: IntArray) -> dict[str, FloatArray]:
    """(samples,) values of each recall, with each image counted as often as it was drawn."""
    num_images = len(ranks.image_to_text)
    all_captions = draws @ np.bincount(image_of_caption, minlength=num_images)
    to_text = {k: 100.0 * (draws @ (ranks.image_to_text < k)) / num_images for k in RECALL_AT}
    found = {k: np.bincount(image_of_caption, ranks.text_to_image < k, num_images) for k in RECALL_AT}
    return {
        **{f"image_to_text.recall_at_{k}": to_text[k] for k in RECALL_AT},
        **{f"text_to_image.recall_at_{k}": 100.0 * (draws @ found[k]) / all_captions for k in RECALL_AT},
    }


def percentile_interval(values: FloatArray) -> Interval:
    """The middle 95% of (samples,) values."""
    return Interval(*np.percentile(values, [2.5, 97.5]).tolist())
