"""Interval bars and training curves: everything lies where its number says."""

from __future__ import annotations

import math
from typing import Any
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest

from vsrn.evaluation.report import Curve, axis_ticks, template_environment, training_curves
from vsrn.metrics import Interval

CHARTS: Any = template_environment().get_template("charts.html.j2").module


def interval_bar(value: float, interval: Interval | None, full: float = 100.0) -> str:
    return str(CHARTS.interval_bar(value, interval, full))


def line_chart(curve: Curve) -> str:
    return str(CHARTS.line_chart(curve))


def rect(svg: str, css_class: str) -> tuple[float, float]:
    """Left edge and width of the rectangle of this class."""
    (found,) = fromstring(svg).findall(f"rect[@class='{css_class}']")
    return float(found.attrib["x"]), float(found.attrib["width"])


def test_an_interval_bar_is_drawn_to_scale() -> None:
    bar = interval_bar(30.0, Interval(15.0, 45.0), full=60.0)
    assert rect(bar, "band") == (25.0, 50.0)
    assert rect(bar, "reach") == (0.0, 50.0)
    left, width = rect(bar, "stroke")
    assert left + width / 2 == 50.0


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_an_interval_bar_never_leaves_its_frame(value: float) -> None:
    for css_class in ("stroke", "band"):
        left, width = rect(interval_bar(value, Interval(value, value)), css_class)
        assert 0 <= left <= 100 - width


def test_without_an_interval_a_bar_has_no_band() -> None:
    assert fromstring(interval_bar(30.0, None)).findall("rect[@class='band']") == []


def test_a_chart_places_its_points_and_its_grid_in_proportion() -> None:
    curve = Curve("rsum", [(10.0, 100.0), (20.0, 400.0), (40.0, 200.0)], best_is_highest=True)
    (svg,) = fromstring(line_chart(curve)).findall("svg")
    (line,) = svg.findall("polyline")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert (x3 - x1) / (x2 - x1) == pytest.approx(3, abs=0.01)
    assert (y1 - y2) / (y1 - y3) == pytest.approx(3, abs=0.01)
    (dot,) = svg.findall("circle")
    assert (float(dot.attrib["cx"]), float(dot.attrib["cy"])) == (x2, y2)
    labels = [label.text or "" for label in svg.findall("text")]
    assert labels == ["0", "100", "200", "300", "400", "step 0", "step 40"]
    for grid, label in zip(svg.findall("line"), labels, strict=False):
        value = 100 + (y1 - float(grid.attrib["y1"])) / (y1 - y2) * 300
        assert value == pytest.approx(float(label), abs=1)


def test_one_validation_at_step_0_is_a_chart_too() -> None:
    (curve,) = training_curves([{"step": 0, "validation": {"rsum": 5.5}}])
    (caption,) = fromstring(line_chart(curve)).findall("figcaption/span")
    assert caption.text == "best 5.5 at step 0"


def test_numbers_that_no_chart_can_hold_are_passed_over() -> None:
    bad = [math.nan, math.inf, -math.inf, None, "7", [1], 10**400]
    history: list[dict[str, Any]] = [{"step": step, "matching_loss": value} for step, value in enumerate(bad)]
    history += [{"step": value, "matching_loss": 1.0} for value in bad]
    history += [{"step": 3, "validation": value} for value in (*bad, {}, {"rsum": math.nan})]
    assert training_curves(history) == []
    (curve,) = training_curves([*history, {"step": 4, "matching_loss": 2.0}])
    assert curve.points == [(4.0, 2.0)]


def test_a_long_run_is_drawn_with_few_points_and_the_same_mean() -> None:
    losses = np.random.default_rng(0).uniform(1, 9, size=24_000)
    (curve,) = training_curves([{"step": step, "matching_loss": loss} for step, loss in enumerate(losses.tolist())])
    assert len(curve.points) <= 120
    assert np.mean([value for _, value in curve.points]) == pytest.approx(losses.mean())


@pytest.mark.parametrize("highest", [1e-6, 0.03, 0.5, 1.0, 7.0, 99.9, 100.0, 312.4, 600.0, 5e6])
def test_axis_ticks_are_round_even_and_reach_the_top(highest: float) -> None:
    ticks = axis_ticks(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-6)
    assert ticks[-1] <= 2 * highest
    assert 3 <= len(ticks) <= 6
    assert np.diff(ticks) == pytest.approx(ticks[1])
    assert f"{ticks[1]:e}"[0] in "125"
