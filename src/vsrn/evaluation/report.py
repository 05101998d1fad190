"""An evaluation for people: a table on the terminal, or one HTML file that holds all it shows.

Console().print(evaluation_table(evaluation))
write_html_report(Path("report.html"), evaluation, photos=Path("photos/"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from vsrn.errors import DataError
from vsrn.evaluation.charts import History
from vsrn.evaluation.eccv import CAVEAT, ExtendedEvaluation
from vsrn.evaluation.evaluate import DIRECTIONS, Evaluation
from vsrn.evaluation.page import report_page
from vsrn.evaluation.thumbnails import Thumbnails
from vsrn.evaluation.wording import (
    DIRECTION_WORDS,
    count_words,
    interval_words,
    median_words,
    metric_words,
    model_words,
    reranking_words,
)
from vsrn.files import write_atomically
from vsrn.metrics import RECALL_AT, DirectionMetrics


def evaluation_table(evaluation: Evaluation) -> Table:
    """Both directions with their recalls in percent, 95% intervals in brackets, and ranks from 1."""
    rsum = metric_words(evaluation.metrics.rsum, interval_words(evaluation, "rsum"))
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # with its intervals wrapped, the table fits 80 columns
        title=Text(f"{model_words(evaluation)} on {evaluation.data}, split {evaluation.split}"),
        caption=Text(f"rsum {rsum} of 600; {count_words(evaluation)}\n{reranking_words(evaluation)}".rstrip()),
    )
    table.add_column("")
    for k in RECALL_AT:
        table.add_column(f"R@{k}", justify="right", min_width=len("[97.0–99.9]"))
    for head in ("average", "median\nrank", "mean\nrank"):
        table.add_column(head, justify="right")
    for direction in DIRECTIONS:
        table.add_row(*(Text(cell) for cell in _cells(evaluation, direction)))
    return table


def extended_table(extended: ExtendedEvaluation) -> Table:
    """Both directions by CxC and ECCV Caption, in percent, with the caveat below."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=Text(CAVEAT))
    table.add_column("")
    for head in (*(f"CxC\nR@{k}" for k in RECALL_AT), "ECCV\nmAP@R", "ECCV\nR-prec.", "ECCV\nR@1"):
        table.add_column(head, justify="right")
    for direction in DIRECTIONS:
        values = [*extended.cxc[direction].values(), *extended.eccv[direction].values()]
        table.add_row(Text(DIRECTION_WORDS[direction]), *(f"{value:.1f}" for value in values))
    return table


def write_html_report(
    path: Path | str,
    evaluations: Evaluation | Sequence[Evaluation],
    *,
    photos: Path | str | None = None,
    history: History | None = None,
) -> None:
    """Write one or several evaluations as a single HTML file that loads nothing from elsewhere.

    photos   folder that the image ids of the examples are paths in; nothing outside it is read, and
             a photo that is missing or damaged becomes a labelled placeholder. None: ids instead of photos
    history  rows of a run's metrics.jsonl, for the training curve

    The file appears whole or not at all. Raises `DataError` where it cannot be written, or where
    `photos` is not a folder.
    """
    path, photos = Path(path), None if photos is None else Path(photos)
    if photos is not None and not photos.is_dir():
        raise DataError(f"there is no folder {photos}; name the folder that the evaluated photos are in.")
    if isinstance(evaluations, Evaluation):
        evaluations = [evaluations]
    page = report_page(evaluations, Thumbnails(photos), history or [])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode("utf-8"))
    except OSError as error:
        fact = f"the report {path} cannot be written: {error.strerror}"
        raise DataError(f"{fact}; name another file.") from error


def _cells(evaluation: Evaluation, direction: str) -> list[str]:
    metrics: DirectionMetrics = getattr(evaluation.metrics, direction)
    recalls = [
        metric_words(recall, interval_words(evaluation, f"{direction}.recall_at_{k}"))
        for k, recall in zip(RECALL_AT, metrics.recalls, strict=True)
    ]
    ranks = [median_words(metrics.median_rank), f"{metrics.mean_rank:,.1f}"]
    return [DIRECTION_WORDS[direction], *recalls, f"{metrics.average_recall:.1f}", *ranks]
