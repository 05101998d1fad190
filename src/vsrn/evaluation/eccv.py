"""COCO's test images judged by more than their own captions: CxC and ECCV Caption, through the package `eccv_caption`.

CxC (Parekh et al., EACL 2021) adds pairs that people rated alike, ECCV Caption (Chun et al., ECCV 2022) pairs that five
models (PVSE, VSRN, PCME, ViLT and CLIP) found and people confirmed, scored by mAP@R and R-precision.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vsrn.data.image_ids import coco_number
from vsrn.data.splits import CaptionedImages
from vsrn.errors import ConfigError, DataError
from vsrn.evaluation.rerank import candidates
from vsrn.metrics import EVERY, RECALL_AT, EncodedSplit

CAPTIONS_JUDGED = 5
CAVEAT = (
    "VSRN was one of the five models that proposed ECCV Caption's positives, so it favours VSRN and models like it."
)
Ids = npt.NDArray[np.int64]

_DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}
_METRICS = {
    "cxc": {f"cxc_r{k}": f"recall_at_{k}" for k in RECALL_AT},
    "eccv_caption": {"eccv_map_at_r": "map_at_r", "eccv_rprecision": "r_precision", "eccv_r1": "recall_at_1"},
}


def extended_evaluation(
    split: CaptionedImages, encoded: Sequence[EncodedSplit], weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Judge a model, or an ensemble, by COCO's 5,000 test images and their captions: percent, to two places.

    "cxc" and "eccv_caption" have "image_to_text" and "text_to_image", and these recall_at_1, recall_at_5 and
    recall_at_10 of CxC, and map_at_r, r_precision and recall_at_1 of ECCV Caption; "caveat" is `CAVEAT`.

    Raises what `check_split` raises, and `SimilarityError` where a similarity is NaN.
    """
    judge, images, captions = check_split(split)
    judged = np.flatnonzero(captions >= 0)
    ids = captions[judged]
    # No metric looks further down a ranking than the longest list of positives.
    truths = (truth[way] for truth in (judge.cxc_gts, judge.eccv_gts) for way in _DIRECTIONS)
    deepest = max(len(positives) for truth in truths for positives in truth.values())
    parts = [each.only(EVERY, judged) for each in encoded]
    of_images, of_captions = candidates(parts, split.image_of_caption[judged], deepest, weights)
    # The package draws a progress bar in any case.
    with contextlib.redirect_stderr(io.StringIO()):
        found: dict[str, dict[str, float]] = judge.compute_all_metrics(
            dict(zip(images.tolist(), ids[of_images].tolist(), strict=True)),
            dict(zip(ids.tolist(), images[of_captions].tolist(), strict=True)),
            target_metrics=("cxc_recalls", *_METRICS["eccv_caption"]),
            Ks=RECALL_AT,
            verbose=False,
        )
    by_metric = {
        name: {
            ours: {metric: round(100 * float(found[theirs][way]), 2) for theirs, metric in metrics.items()}
            for way, ours in _DIRECTIONS.items()
        }
        for name, metrics in _METRICS.items()
    }
    return {**by_metric, "caveat": CAVEAT}


def check_split(split: CaptionedImages) -> tuple[Any, Ids, Ids]:
    """The package's judge, and COCO's numbers of a split's images and captions (`coco_ids`).

    Raises `ConfigError` where the package is not installed, and `DataError` where the split is not COCO's test split.
    """
    try:
        with warnings.catch_warnings():
            # It warns of packages that it can do without.
            warnings.simplefilter("ignore")
            from eccv_caption import Metrics  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(
            "CxC and ECCV Caption need the package eccv-caption; run `pip install '.[eval]'` in the checkout."
        ) from error
    judge = Metrics()
    return judge, *coco_ids(split, judge)


def coco_ids(split: CaptionedImages, judge: Any) -> tuple[Ids, Ids]:
    """COCO's number of every image, and of every caption or -1 where it is none of an image's first five.

    Images are recognised by their ids: file names of COCO or its numbers. Where the ids are neither, as in the
    published features, 5,000 images are taken to be their `testall` in the order of the judge's captions.
    Raises `DataError` where the split has other images, or one has fewer than five captions.
    """
    captions_of: dict[int, list[int]] = {}
    for caption in judge.coco_ids.tolist():
        captions_of.setdefault(judge.coco_gts["t2i"][caption][0], []).append(caption)
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
    captions = np.full(len(split.captions), -1, np.int64)
    for image, number in enumerate(images.tolist()):
        places = np.flatnonzero(split.image_of_caption == image)[:CAPTIONS_JUDGED]
        if len(places) < CAPTIONS_JUDGED:
            fact = f"image {ids[image]} has {len(places)} captions"
            raise DataError(f"{fact}; CxC and ECCV Caption want COCO's first five.")
        captions[places] = captions_of[number]
    return images, captions
