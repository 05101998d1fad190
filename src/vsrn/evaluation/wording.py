"""How an evaluation is put into words and digits, the same on the terminal and in the HTML report."""

from __future__ import annotations

import html
import re

from vsrn.evaluation.caption_scores import CaptionScores
from vsrn.evaluation.evaluate import Evaluation
from vsrn.metrics import FIVE_FOLD_IMAGES, Interval

DIRECTION_WORDS = {"image_to_text": "image to text", "text_to_image": "text to image"}
# Characters that HTML forbids, and lone surrogates, which have no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def model_words(evaluation: Evaluation) -> str:
    """The model's name, or the names of an ensemble."""
    return " + ".join(evaluation.models)


def count_words(evaluation: Evaluation) -> str:
    """Numbers of images and captions, and the folds where there are several."""
    folds = f", mean of {evaluation.num_folds} folds of {FIVE_FOLD_IMAGES:,} images"
    return (
        f"{evaluation.num_images:,} images, {evaluation.num_captions:,} captions"
        f"{folds if evaluation.num_folds > 1 else ''}"
    )


def reranking_words(evaluation: Evaluation) -> str:
    """What a second stage gained and cost in one sentence, or nothing where there was none."""
    second = evaluation.reranking
    if second is None:
        return ""
    gain = evaluation.metrics.rsum - second.alone.rsum
    return (
        f"The best {second.top} of every query were re-ordered by {second.model}: rsum {gain:+.1f} from"
        f" {second.alone.rsum:.1f}, {second.second_seconds:,.0f} s on top of {second.first_seconds:,.0f} s."
    )


def interval_words(evaluation: Evaluation, name: str) -> str:
    """The 95% interval of a metric as `[31.5–37.1]`, or nothing where there is none."""
    interval = evaluation.intervals.get(name)
    return _interval(interval) if interval else ""


def caption_words(scores: CaptionScores) -> str:
    """Both scores of written captions with their intervals.

    >>> caption_words(CaptionScores(20.04, 101.6, {"bleu_4": Interval(18.9, 21.1), "cider_d": Interval(90.0, 112.5)}))
    'BLEU-4 20.0 [18.9–21.1], CIDEr-D 101.6 [90.0–112.5]'
    """
    bleu_4 = metric_words(scores.bleu_4, _interval(scores.intervals["bleu_4"]))
    return f"BLEU-4 {bleu_4}, CIDEr-D {metric_words(scores.cider_d, _interval(scores.intervals['cider_d']))}"


def metric_words(value: float, interval: str) -> str:
    """A metric and its interval in one cell.

    >>> metric_words(34.21, "[31.5–37.1]")
    '34.2 [31.5–37.1]'
    """
    return f"{value:.1f} {interval}".rstrip()


def _interval(interval: Interval) -> str:
    return f"[{_bound(interval.low)}–{_bound(interval.high)}]"


def _bound(percent: float) -> str:
    """One decimal, but a plain 100, so that no interval is wider than another by two characters."""
    return f"{percent:.1f}".replace("100.0", "100")


def median_words(rank: float) -> str:
    """A median rank, without a decimal where it is whole, as it is unless folds are averaged.

    >>> median_words(3.0), median_words(2.4)
    ('3', '2.4')
    """
    return f"{rank:,.1f}".removesuffix(".0")


def escaped(text: str) -> str:
    """Text as it may stand in HTML, inside or outside an attribute; what cannot be printed becomes a mark.

    >>> escaped('<b title="x">\\x00')
    '&lt;b title=&quot;x&quot;&gt;\ufffd'
    """
    return html.escape(_UNPRINTABLE.sub("\ufffd", text), quote=True)
