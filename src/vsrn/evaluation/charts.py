"""Interval bars and training curves as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeGuard

from vsrn.metrics import Interval

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

    Rows without a finite number at a curve's place are left out.
    """
    validation = [(row.get("step"), _validation_rsum(row)) for row in history]
    curves = [Curve("Sum of recalls on validation", _finite(validation), best_is_highest=True)]
    for key, title in (("matching_loss", "Matching loss"), ("generation_loss", "Generation loss")):
        curves.append(Curve(title, _thinned(_finite((row.get("step"), row.get(key)) for row in history))))
    return [curve for curve in curves if any(value for _, value in curve.points)]


def line_chart(curve: Curve) -> str:
    """One curve over training steps, with its axes and its last (or best) value in words."""
    highest = max(value for _, value in curve.points)
    ticks = axis_ticks(highest)
    last_step = max(step for step, _ in curve.points) or 1.0
    places = [_place(point, last_step, ticks[-1]) for point in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    noted = _noted_point(curve)
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


def _noted_point(curve: Curve) -> Point:
    return max(curve.points, key=lambda point: point[1]) if curve.best_is_highest else curve.points[-1]


def _validation_rsum(row: Mapping[str, Any]) -> object:
    validation = row.get("validation")
    return validation.get("rsum") if isinstance(validation, Mapping) else None


def _finite(pairs: Iterable[tuple[object, object]]) -> list[Point]:
    """The pairs of numbers from 0 up to `HIGHEST`, sorted by step; NaN and what is no number are left out."""
    return sorted((float(step), float(value)) for step, value in pairs if _is_number(step) and _is_number(value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 <= value < HIGHEST


def _thinned(points: list[Point]) -> list[Point]:
    """At most `MOST_POINTS` points, each the mean of a stretch of steps."""
    stretch = math.ceil(len(points) / MOST_POINTS) or 1
    parts = [points[first : first + stretch] for first in range(0, len(points), stretch)]
    return [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in parts]
