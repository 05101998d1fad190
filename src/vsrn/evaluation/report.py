"""An evaluation for people: one HTML file that holds all it shows."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from vsrn import __version__
from vsrn.data.image_ids import read_id_mapping
from vsrn.data.listing import PhotoNames
from vsrn.data.photos import decode_photo
from vsrn.errors import DataError, PhotoError
from vsrn.evaluation import tables
from vsrn.evaluation.evaluate import Evaluation
from vsrn.files import write_atomically
from vsrn.metrics import RECALL_AT

THUMBNAIL_SIZE = 256
JPEG_QUALITY = 82
# Characters that HTML forbids, and lone surrogates, which UTF-8 cannot encode.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def write_html_report(
    path: Path | str,
    evaluations: Evaluation | Sequence[Evaluation],
    *,
    photos: Path | str | None = None,
    history: History | None = None,
) -> list[str]:
    """Write one or several evaluations as a single HTML file that loads nothing from elsewhere.

    photos   folder of the photos that the image ids of the examples mean (`PhotoNames.find`, by the id_mapping.json
             of the evaluated data), outside of which nothing is read; None shows ids instead of photos
    history  rows of a run's metrics.jsonl, for the training curves

    Gives the ids of the images whose photo is missing or damaged, which have a labelled placeholder. The file appears
    whole or not at all. Raises `DataError` where it cannot be written, or where `photos` is not a folder.
    """
    path, folder = Path(path), None if photos is None else Path(photos).resolve()
    if folder is not None and not folder.is_dir():
        raise DataError(f"there is no folder {photos}; name the folder that the evaluated photos are in.")
    names = functools.cache(lambda data: PhotoNames(folder or "", read_id_mapping(Path(data))))
    drawn: dict[tuple[str, str], str] = {}

    def thumbnail(evaluation: Evaluation, image_id: str) -> str:
        """A photo as `_thumbnail` draws it, once; empty without a folder, and where images are just numbered."""
        key = evaluation.data, image_id
        if folder is not None and key not in drawn:
            drawn[key] = _thumbnail(folder, names(evaluation.data), image_id) if evaluation.has_ids else ""
        return drawn.get(key, "")

    def missing() -> list[str]:
        return [image_id for (_, image_id), picture in drawn.items() if not picture]

    page = template_environment().get_template("report.html.j2")
    content = page.render(
        evaluations=[evaluations] if isinstance(evaluations, Evaluation) else evaluations,
        thumbnail=thumbnail,
        missing=missing,
        photos=folder,
        curves=training_curves(history or []),
        style=Path(__file__).with_name("report.css").read_text(encoding="utf-8"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{content}\n".encode())
    except OSError as error:
        raise DataError(f"the report {path} cannot be written: {error.strerror}; name another file.") from error
    return missing()


def _thumbnail(folder: Path, names: PhotoNames, image_id: str) -> str:
    """A `data:` address of a photo of the folder as a JPEG of at most 256 pixels a side.

    It is empty where the photo is missing or damaged, or its id leads out of the folder: absolute, by `..` or a link.
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


def template_environment() -> Environment:
    """Jinja with escaping; a character that HTML forbids becomes U+FFFD."""
    environment = Environment(
        loader=PackageLoader("vsrn.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: _UNPRINTABLE.sub("\ufffd", value) if type(value) is str else value,
    )
    environment.globals |= {"tables": tables, "axis_ticks": axis_ticks, "recall_at": RECALL_AT, "version": __version__}
    return environment


Point = tuple[float, float]
History = Sequence[Mapping[str, Any]]

MOST_POINTS = 120
HIGHEST = 1e15


@dataclass(frozen=True)
class Curve:
    """One line of the training curve: (step, value) points in the order of the steps."""

    title: str
    points: list[Point]
    best_is_highest: bool = False


def training_curves(history: History) -> list[Curve]:
    """The curves that a run's rows allow: rsum on validation, matching and generation loss.

    Rows without a finite number are left out; a loss has at most `MOST_POINTS` points, means of neighbouring steps.
    """
    validated = [row for row in history if isinstance(row.get("validation"), Mapping)]
    rsums = _finite((row.get("step"), row["validation"].get("rsum")) for row in validated)
    curves = [Curve("Sum of recalls on validation", rsums, best_is_highest=True)]
    for key, title in (("matching_loss", "Matching loss"), ("generation_loss", "Generation loss")):
        if points := _finite((row.get("step"), row.get(key)) for row in history):
            parts = np.array_split(points, min(len(points), MOST_POINTS))
            curves.append(Curve(title, [tuple(part.mean(axis=0).tolist()) for part in parts]))
    return [curve for curve in curves if any(value for _, value in curve.points)]


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


def _finite(pairs: Iterable[tuple[Any, Any]]) -> list[Point]:
    """The pairs of numbers from 0 up to `HIGHEST`, sorted by step; NaN and what is no number are left out."""
    kept = (pair for pair in pairs if all(isinstance(part, int | float) and 0 <= part < HIGHEST for part in pair))
    return sorted((float(step), float(value)) for step, value in kept)
