"""COCO's test images judged by more than their own captions: CxC and ECCV Caption, through the package `eccv_caption`.

COCO counts one image as right for a caption, and its five captions for an image; many others fit as well. CxC (Parekh
et al., EACL 2021) adds pairs that people rated alike, ECCV Caption (Chun et al., ECCV 2022) pairs that models found
and people confirmed, scored by mAP@R and R-precision.

The five models that found them are PVSE, VSRN, PCME, ViLT and CLIP, so the pairs that VSRN ranks high had a better
chance to be judged: ECCV Caption favours VSRN, and whoever ranks as it does.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vsrn.data.annotations import coco_number
from vsrn.data.splits import CaptionedImages
from vsrn.errors import ConfigError, DataError
from vsrn.metrics import Block, Blocks, FloatArray, IntArray, refuse_nan

CAPTIONS_JUDGED = 5
CAVEAT = "VSRN was one of the five models that proposed ECCV Caption's positives, so it favours VSRN and its likes."
_RECALL_AT = (1, 5, 10)
_DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}
_ECCV_METRICS = {"eccv_map_at_r": "map_at_r", "eccv_rprecision": "r_precision", "eccv_r1": "recall_at_1"}


@dataclass(frozen=True)
class ExtendedEvaluation:
    """Both sets of judgements, in percent, by direction ("image_to_text", "text_to_image") and name.

    cxc   recall_at_1, recall_at_5, recall_at_10
    eccv  map_at_r, r_precision, recall_at_1
    """

    cxc: dict[str, dict[str, float]]
    eccv: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, to two places."""
        rounded = {
            name: {way: {metric: round(value, 2) for metric, value in of.items()} for way, of in judged.items()}
            for name, judged in (("cxc", self.cxc), ("eccv_caption", self.eccv))
        }
        return {**rounded, "caveat": CAVEAT}


def extended_evaluation(split: CaptionedImages, blocks: Blocks) -> ExtendedEvaluation:
    """Judge the similarities of COCO's 5,000 test images and their captions.

    Raises `ConfigError` where the package is not installed, `DataError` where the split is another one, and
    `SimilarityError` where a similarity is NaN.
    """
    judge, images, captions = _judge_of(split)
    judged = np.flatnonzero(captions >= 0)
    # No metric looks deeper than the longest list of positives.
    truths = (judge.cxc_gts, judge.eccv_gts)
    deepest = {way: max(len(positives) for truth in truths for positives in truth[way].values()) for way in _DIRECTIONS}
    of_images, of_captions = best_matches(_columns(blocks, judged), deepest["i2t"], deepest["t2i"])
    ids = captions[judged]
    # The package draws a progress bar whether one wants it or not.
    with contextlib.redirect_stderr(io.StringIO()):
        found: dict[str, dict[str, float]] = judge.compute_all_metrics(
            {int(image): ids[row].tolist() for image, row in zip(images, of_images, strict=True)},
            {int(caption): images[row].tolist() for caption, row in zip(ids, of_captions, strict=True)},
            target_metrics=("cxc_recalls", *_ECCV_METRICS),
            Ks=_RECALL_AT,
            verbose=False,
        )
    return ExtendedEvaluation(
        cxc=_by_direction(found, {f"cxc_r{k}": f"recall_at_{k}" for k in _RECALL_AT}),
        eccv=_by_direction(found, _ECCV_METRICS),
    )


def refuse_other_split(split: CaptionedImages) -> None:
    """Raise what `extended_evaluation` would raise of this split, before anything is encoded."""
    _judge_of(split)


def _judge_of(split: CaptionedImages) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    judge = _load_judge()
    return judge, *coco_ids(split, judge.coco_ids.tolist(), judge.coco_gts["t2i"])


def coco_ids(
    split: CaptionedImages, test_captions: Sequence[int], image_of: dict[int, list[int]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """COCO's number of every image, and of every caption or -1 where it is none of an image's first five.

    test_captions  COCO's numbers of the 25,000 test captions, in the field's order
    image_of       caption -> the one image it was written for

    Images are told by their ids, as file names of COCO's or numbers; where the ids are neither, as in the field's
    precomputed features, 5,000 images are taken for the field's `testall` in its order. Raises `DataError` where the
    split is not those images, or one has fewer than five captions.
    """
    captions_of: dict[int, list[int]] = {}
    for caption in test_captions:
        captions_of.setdefault(image_of[caption][0], []).append(caption)
    ids = split.image_ids()
    numbers = [coco_number(name) for name in ids]
    if not any(numbers):
        plain = [int(name) if name.isascii() and name.isdigit() and len(name) < 19 else -1 for name in ids]
        numbers = list(plain) if set(plain) == captions_of.keys() else list(captions_of)
    if len(ids) != len(captions_of) or set(numbers) != captions_of.keys():
        among = len(captions_of.keys() & set(numbers)) if len(numbers) == len(ids) else 0
        raise DataError(
            f"CxC and ECCV Caption are about the {len(captions_of):,} images of COCO's Karpathy test split; split"
            f" '{split.name}' of {split.folder} has {len(ids):,} images, {among:,} of them among those."
        )
    images = np.array(numbers, np.int64)
    seen = np.zeros(len(images), np.int64)
    captions = np.full(len(split.captions), -1, np.int64)
    for place, image in enumerate(split.image_of_caption):
        if seen[image] < CAPTIONS_JUDGED:
            captions[place] = captions_of[int(images[image])][seen[image]]
        seen[image] += 1
    if seen.min() < CAPTIONS_JUDGED:
        few = int(seen.argmin())
        raise DataError(f"image {ids[few]} has {seen[few]} captions; CxC and ECCV Caption want COCO's first five.")
    return images, captions


def best_matches(blocks: Blocks, num_captions: int, num_images: int) -> tuple[IntArray, IntArray]:
    """(num_images, at most `num_captions`) and (num_captions, at most `num_images`) places of the best, best first."""
    of_images: list[IntArray] = []
    scores: FloatArray | None = None
    places: IntArray | None = None
    for first, block in blocks():
        refuse_nan(block)
        of_images.append(_best(block, num_captions)[1])
        rows = np.broadcast_to(np.arange(first, first + len(block)), (block.shape[1], len(block)))
        # The best so far stand in front: among equals the earlier image comes first.
        so_far = block.T if scores is None else np.concatenate([scores, block.T], axis=1)
        rows = rows if places is None else np.concatenate([places, rows], axis=1)
        scores, chosen = _best(so_far, num_images)
        places = np.take_along_axis(rows, chosen, axis=1)
    assert places is not None
    return np.concatenate(of_images), places


def _best(scores: FloatArray, number: int) -> tuple[FloatArray, IntArray]:
    """(Q, M) -> the `number` largest of each row and their places, largest first."""
    places = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    if number < scores.shape[1]:
        places = np.sort(np.argpartition(-scores, number - 1, axis=1)[:, :number], axis=1)
    kept = np.take_along_axis(scores, places, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    return np.take_along_axis(kept, order, axis=1), np.take_along_axis(places, order, axis=1)


def _columns(blocks: Blocks, columns: IntArray) -> Blocks:
    """The blocks with these captions alone."""

    def make() -> Iterator[Block]:
        for first, block in blocks():
            yield first, block if len(columns) == block.shape[1] else block[:, columns]

    return make


def _load_judge() -> Any:
    try:
        with warnings.catch_warnings():
            # It would rather have other packages than it needs.
            warnings.simplefilter("ignore")
            from eccv_caption import Metrics  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(
            "CxC and ECCV Caption need the package eccv-caption; install it with `pip install 'vsrn[eval]'`."
        ) from error
    return Metrics()


def _by_direction(found: dict[str, dict[str, float]], names: dict[str, str]) -> dict[str, dict[str, float]]:
    return {
        ours: {name: 100 * float(found[theirs][way]) for theirs, name in names.items()}
        for way, ours in _DIRECTIONS.items()
    }
