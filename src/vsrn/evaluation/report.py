"""An evaluation for people: tables on the terminal, or one HTML file that holds all it shows.

write_html_report(Path("report.html"), evaluation, photos=Path("photos/"))
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vsrn import __version__
from vsrn.data.image_ids import read_id_mapping
from vsrn.data.listing import PhotoNames
from vsrn.data.photos import decode_photo
from vsrn.errors import DataError, PhotoError
from vsrn.evaluation.caption_scores import CaptionScores
from vsrn.evaluation.eccv import CAVEAT
from vsrn.evaluation.evaluate import Evaluation
from vsrn.evaluation.tables import (
    DIRECTION_WORDS,
    count_words,
    evaluation_table,
    interval_words,
    median_words,
    name_words,
    reranking_words,
    with_interval,
)
from vsrn.files import write_atomically
from vsrn.metrics import RECALL_AT, Interval

THUMBNAIL_SIZE = 256
JPEG_QUALITY = 82
# Characters that HTML forbids, and lone surrogates, which UTF-8 cannot encode.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


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
        words = f"BLEU-4 {with_interval(scores, 'bleu_4', scores.bleu_4)}, CIDEr-D"
        print(f"Captions written with a beam of {beam}: {words} {with_interval(scores, 'cider_d', scores.cider_d)}")


def extended_table(extended: Mapping[str, Any]) -> Table:
    """Both directions by CxC and ECCV Caption, in percent, with the caveat below."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=Text(CAVEAT))
    table.add_column("")
    for head in (*(f"CxC\nR@{k}" for k in RECALL_AT), "ECCV\nmAP@R", "ECCV\nR-prec.", "ECCV\nR@1"):
        table.add_column(head, justify="right")
    for direction, words in DIRECTION_WORDS.items():
        values = [*extended["cxc"][direction].values(), *extended["eccv_caption"][direction].values()]
        table.add_row(words, *(f"{value:.1f}" for value in values))
    return table


def write_html_report(
    path: Path | str,
    evaluations: Evaluation | Sequence[Evaluation],
    *,
    photos: Path | str | None = None,
    history: History | None = None,
) -> list[str]:
    """Write one or several evaluations as a single HTML file that loads nothing from elsewhere.

    photos   folder of the photos that the image ids of the examples mean (`PhotoNames.find`, by the id_mapping.json
             of the evaluated data); nothing outside it is read, and a photo that is missing or damaged becomes a
             labelled placeholder. None: ids instead of photos
    history  rows of a run's metrics.jsonl, for the training curves

    Gives the ids of the images that have placeholders though there is a folder; the report says how many they are.
    The file appears whole or not at all. Raises `DataError` where it cannot be written, or where
    `photos` is not a folder.
    """
    path, folder = Path(path), None if photos is None else Path(photos).resolve()
    if folder is not None and not folder.is_dir():
        raise DataError(f"there is no folder {photos}; name the folder that the evaluated photos are in.")
    page = _template_environment().get_template("report.html.j2")
    pictures = _Pictures(folder)
    content = page.render(
        evaluations=[evaluations] if isinstance(evaluations, Evaluation) else evaluations,
        thumbnail=pictures.thumbnail,
        missing=pictures.missing,
        photos=folder,
        curves=training_curves(history or []),
        style=Path(__file__).with_name("report.css").read_text(encoding="utf-8"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{content}\n".encode())
    except OSError as error:
        fact = f"the report {path} cannot be written: {error.strerror}"
        raise DataError(f"{fact}; name another file.") from error
    return pictures.missing()


class _Pictures:
    """The pictures of a report, each read once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._names: dict[str, PhotoNames] = {}
        self._drawn: dict[tuple[str, str], str] = {}

    def thumbnail(self, evaluation: Evaluation, image_id: str) -> str:
        """A photo as `_thumbnail` draws it; empty without a folder, and where images are just numbered."""
        if self.folder is None:
            return ""
        data, key = evaluation.data, (evaluation.data, image_id)
        if key not in self._drawn:
            if data not in self._names:
                self._names[data] = PhotoNames(self.folder, read_id_mapping(Path(data)))
            self._drawn[key] = _thumbnail(self.folder, self._names[data], image_id) if evaluation.has_ids else ""
        return self._drawn[key]

    def missing(self) -> list[str]:
        """Ids of the images that were asked for and have no picture, where there is a folder."""
        return [image_id for (_, image_id), drawn in self._drawn.items() if not drawn]


def _thumbnail(folder: Path, names: PhotoNames, image_id: str) -> str:
    """A `data:` address of a photo of the folder as a JPEG of at most 256 pixels a side.

    It is empty where the photo is missing or damaged, or where its id leads out of the folder: absolute, by `..` or by
    a link.
    """
    try:
        found = names.find(image_id)
        path = found.resolve() if found is not None else None
        if path is None or ".." in Path(image_id).parts or not path.is_relative_to(folder):
            return ""
        photo = decode_photo(path, target_size=THUMBNAIL_SIZE)
    except (PhotoError, OSError, ValueError, RuntimeError):  # a NUL, a name too long, a circle of links
        return ""
    photo.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    # A report is passed on, so it must not hold the comments and positions that a camera wrote.
    photo.info = {}
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _template_environment() -> Environment:
    """Jinja with escaping; a character that HTML forbids becomes U+FFFD."""
    environment = Environment(
        loader=PackageLoader("vsrn.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: _UNPRINTABLE.sub("\ufffd", value) if type(value) is str else value,
    )
    drawings = (interval_bar, line_chart)
    words = (count_words, interval_words, median_words, name_words, reranking_words, with_interval)
    environment.globals |= {function.__name__: function for function in (*drawings, *words)}
    environment.globals |= {"direction_words": DIRECTION_WORDS, "recall_at": RECALL_AT, "version": __version__}
    return environment


Point = tuple[float, float]
History = Sequence[Mapping[str, Any]]

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 14, 160
MOST_POINTS = 120
HIGHEST = 1e15


@dataclass(frozen=True)
class Curve:
    """One line of the training curve: (step, value) points in the order of the steps."""

    title: str
    points: list[Point]
    best_is_highest: bool = False


def interval_bar(value: float, interval: Interval | None, full: float = 100.0) -> str:
    """A bar from 0 to `full` with a metric's value as a stroke and its interval as a band around it."""
    band = ""
    if interval is not None:
        low, high = (100 * edge / full for edge in (interval.low, interval.high))
        band = f'<rect class="band" x="{low:.2f}" y="0" width="{high - low:.2f}" height="8"/>'
    stroke = 100 * value / full
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="3" width="100" height="2"/>'
        f'<rect class="reach" x="0" y="3" width="{stroke:.2f}" height="2"/>{band}'
        f'<rect class="stroke" x="{min(max(stroke - 0.5, 0), 99):.2f}" y="0" width="1" height="8"/></svg>'
    )


def training_curves(history: History) -> list[Curve]:
    """The curves that a run's rows allow: rsum on validation, matching and generation loss.

    Rows without a finite number at a curve's place are left out; a loss has at most `MOST_POINTS` points, each the mean
    of neighbouring steps.
    """
    validations = [
        (row.get("step"), row["validation"]) for row in history if isinstance(row.get("validation"), Mapping)
    ]
    rsums = _finite((step, metrics.get("rsum")) for step, metrics in validations)
    curves = [Curve("Sum of recalls on validation", rsums, best_is_highest=True)]
    for key, title in (("matching_loss", "Matching loss"), ("generation_loss", "Generation loss")):
        if points := _finite((row.get("step"), row.get(key)) for row in history):
            parts = np.array_split(points, min(len(points), MOST_POINTS))
            curves.append(Curve(title, [tuple(part.mean(axis=0).tolist()) for part in parts]))
    return [curve for curve in curves if any(value for _, value in curve.points)]


def line_chart(curve: Curve) -> str:
    """One curve over training steps, with its axes and its last (or best) value in words."""
    highest = max(value for _, value in curve.points)
    ticks = axis_ticks(highest)
    last_step = max(step for step, _ in curve.points) or 1.0
    places = [_place(point, last_step, ticks[-1]) for point in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    noted = max(curve.points, key=lambda point: point[1]) if curve.best_is_highest else curve.points[-1]
    x, y = _place(noted, last_step, ticks[-1])
    words = f"{'best' if curve.best_is_highest else 'last'} {noted[1]:,.1f} at step {noted[0]:,.0f}"
    return (
        f'<figure class="chart"><figcaption>{curve.title}<span>{words}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{curve.title}, by step: {words}">'
        f"{_grid(ticks, last_step)}"
        f'<polyline class="line" points="{path}"/><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        "</svg></figure>"
    )


def axis_ticks(highest: float) -> list[float]:
    """Three to six round numbers from 0 to one that is at least `highest`.

    >>> axis_ticks(312.4)
    [0.0, 100.0, 200.0, 300.0, 400.0]
    >>> axis_ticks(0.7)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    rough = max(highest, 1e-9) / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    width = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough * 0.999)
    count = math.ceil(highest / width - 1e-9)
    return [round(width * tick, 12) for tick in range(max(count, 1) + 1)]


def _grid(ticks: Sequence[float], last_step: float) -> str:
    lines = []
    for tick in ticks:
        _, y = _place((0, tick), last_step, ticks[-1])
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    lines.append(f'<text class="tick" x="{LEFT}" y="{HEIGHT - 10}">step 0</text>')
    lines.append(f'<text class="tick" x="{RIGHT}" y="{HEIGHT - 10}" text-anchor="end">step {last_step:,.0f}</text>')
    return "".join(lines)


def _place(point: Point, last_step: float, highest: float) -> Point:
    """Where a point of a curve lies in the drawing."""
    step, value = point
    return LEFT + (RIGHT - LEFT) * step / last_step, BOTTOM - (BOTTOM - TOP) * value / highest


def _finite(pairs: Iterable[tuple[object, object]]) -> list[Point]:
    """The pairs of numbers from 0 up to `HIGHEST`, sorted by step; NaN and what is no number are left out."""
    return sorted((float(step), float(value)) for step, value in pairs if _is_number(step) and _is_number(value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 <= value < HIGHEST
