"""An evaluation as a table: for a terminal, as CSV, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vsrn.metrics import FIVE_FOLD_IMAGES, RECALL_AT, DirectionMetrics

if TYPE_CHECKING:
    from vsrn.evaluation.caption_scores import CaptionScores
    from vsrn.evaluation.evaluate import Evaluation

DIRECTION_WORDS = {"image_to_text": "image to text", "text_to_image": "text to image"}
# What LaTeX reads as a command, and how the character itself is written.
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}

TextFormat = Literal["csv", "markdown", "latex"]


def print_tables(
    evaluation: Evaluation,
    extended: Mapping[str, Any] | None = None,
    scores: CaptionScores | None = None,
    beam: int = 1,
) -> None:
    """Print what was measured on standard output, as tables; `scores` are those of captions written with a `beam`."""
    console = Console()
    console.print(evaluation_table(evaluation))
    if extended is not None:
        console.print(extended_table(extended))
    if scores is not None:
        words = f"BLEU-4 {with_interval(scores, 'bleu_4')}, CIDEr-D {with_interval(scores, 'cider_d')}"
        print(f"Captions written with a beam of {beam}: {words}")


def evaluation_table(evaluation: Evaluation) -> Table:
    """Both directions with their recalls in percent, 95% intervals in brackets, and ranks from 1."""
    split = f"on {evaluation.data}, split {evaluation.split}" if evaluation.data else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # with its intervals below the recalls, the table fits 80 columns
        title=Text(f"{name_words(evaluation)} {split}".strip()),
        caption=Text(
            f"rsum {with_interval(evaluation, 'rsum')} of 600; {count_words(evaluation)}\n"
            f"{reranking_words(evaluation)}".rstrip()
        ),
    )
    table.add_column("", no_wrap=True)
    for k in RECALL_AT:
        table.add_column(f"R@{k}", justify="right", min_width=len("[97.0–99.9]"))
    for head in ("average", "median\nrank", "mean\nrank"):
        table.add_column(head, justify="right")
    for direction, words in DIRECTION_WORDS.items():
        metrics: DirectionMetrics = getattr(evaluation.metrics, direction)
        recalls = [with_interval(evaluation, f"{direction}.recall_at_{k}") for k in RECALL_AT]
        others = [f"{metrics.average_recall:.1f}", median_words(metrics.median_rank), f"{metrics.mean_rank:,.1f}"]
        table.add_row(*map(Text, [words, *recalls, *others]))
    return table


def extended_table(extended: Mapping[str, Any]) -> Table:
    """Both directions by CxC and ECCV Caption, in percent, with the caveat below."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=Text(extended["caveat"]))
    table.add_column("")
    for head in (*(f"CxC\nR@{k}" for k in RECALL_AT), "ECCV\nmAP@R", "ECCV\nR-prec.", "ECCV\nR@1"):
        table.add_column(head, justify="right")
    for direction, words in DIRECTION_WORDS.items():
        values = [*extended["cxc"][direction].values(), *extended["eccv_caption"][direction].values()]
        table.add_row(words, *(f"{value:.1f}" for value in values))
    return table


def as_text(evaluation: Evaluation) -> str:
    """`evaluation_table` as plain text of 80 columns at most."""
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(evaluation_table(evaluation))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def as_lines(evaluation: Evaluation, form: TextFormat) -> str:
    """An evaluation as a head and one row, for a spreadsheet or a paper.

    "csv"       every number with its interval; the columns are named as in JSON
    "markdown"  the field's row: the six recalls and rsum
    "latex"     the same as a tabular that needs no package
    """
    if form == "csv":
        return _csv(evaluation)
    name = name_words(evaluation) or "similarities"
    recalls = [f"{recall:.1f}" for way in DIRECTION_WORDS for recall in getattr(evaluation.metrics, way).recalls]
    row = [*recalls, f"{evaluation.metrics.rsum:.1f}"]
    heads = [f"R@{k}" for k in RECALL_AT]
    if form == "markdown":
        ways = [f"{words} {head}" for words in DIRECTION_WORDS.values() for head in heads]
        table = ["model", *ways, "rsum"], [name.replace("|", "\\|"), *row]
        head, body = (f"| {' | '.join(cells)} |" for cells in table)
        return "\n".join((head, "|---|" + "--:|" * 7, body))
    ways = [rf"\multicolumn{{3}}{{c}}{{{words}}}" for words in DIRECTION_WORDS.values()]
    escaped = re.sub(r"[&%$#_{}\\~^]", lambda found: _LATEX[found[0]], name)
    rows = (["", *ways, ""], ["model", *heads, *heads, "rsum"], [escaped, *row])
    first, second, third = (" & ".join(cells) + r" \\" for cells in rows)
    lines = (r"\begin{tabular}{lrrrrrrr}", r"\hline", first, second, r"\hline", third, r"\hline", r"\end{tabular}")
    return "\n".join(lines)


def _csv(evaluation: Evaluation) -> str:
    found = evaluation.to_json()
    values = {name: found[name] for name in ("data", "split", "num_images", "num_captions", "num_folds")}
    values = {"models": name_words(evaluation)} | values
    for direction in DIRECTION_WORDS:
        values |= {f"{direction}.{name}": number for name, number in found[direction].items()}
    values["rsum"] = found["rsum"]
    for name, (low, high) in found["intervals_95"].items():
        values |= {f"{name}.low": low, f"{name}.high": high}
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([list(values), list(values.values())])
    return written.getvalue().rstrip("\n")


def name_words(evaluation: Evaluation) -> str:
    """The models' names, each with its weight where they have weights: `runs/a + runs/b`; nothing without a model."""
    if evaluation.weights is None:
        return " + ".join(evaluation.models)
    return " + ".join(f"{w:g} x {name}" for w, name in zip(evaluation.weights, evaluation.models, strict=True))


def count_words(evaluation: Evaluation) -> str:
    """Numbers of images and captions, and the folds where there are several."""
    words = f"{evaluation.num_images:,} images, {evaluation.num_captions:,} captions"
    folds = f", mean of {evaluation.num_folds} folds of {FIVE_FOLD_IMAGES:,} images"
    return words + (folds if evaluation.num_folds > 1 else "")


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


def median_words(rank: float) -> str:
    """A median rank, without a decimal where it is whole, as it is unless folds are averaged.

    >>> median_words(3.0), median_words(2.4)
    ('3', '2.4')
    """
    return f"{rank:,.1f}".removesuffix(".0")


def with_interval(evaluation: Evaluation | CaptionScores, name: str) -> str:
    """A metric, such as "rsum", with its 95% interval, if it has one, as `493.2 [475.0–510.2]`."""
    return f"{attrgetter(name)(evaluation):.1f} {interval_words(evaluation, name)}".rstrip()


def interval_words(evaluation: Evaluation | CaptionScores, name: str) -> str:
    """The 95% interval of a metric as `[31.5–37.1]`, with 100 for 100.0, or nothing where there is none."""
    interval = evaluation.intervals.get(name)
    return "" if interval is None else f"[{interval.low:.1f}–{interval.high:.1f}]".replace("100.0", "100")
