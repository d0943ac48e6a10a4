"""The learning curves of a training, as charts for `report.html`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

POINTS = 200
"""Points of a line; a longer history is averaged over equal numbers of points."""
LEFT, RIGHT, TOP, BOTTOM = 48.0, 376.0, 14.0, 210.0
"""The frame of a chart within 380 x 250."""
LOG_RATIO = 50.0
"""Ratio of the largest to the smallest learning rate from which their axis is logarithmic."""

_CHARTS = {
    "Loss": {"train/loss": "train", "val/loss": "val"},
    "Accuracy": {"val/top1": "top-1, val", "val/top5": "top-5, val"},
    "Learning rate": {"train/lr": "learning rate"},
}
CURVE_METRICS = tuple(metric for lines in _CHARTS.values() for metric in lines)
"""The metrics of a run that the charts show."""


class Line(NamedTuple):
    """One line of a chart: its name, and its points as SVG has them, "x,y x,y"."""

    name: str
    points: str


class Tick(NamedTuple):
    """A mark of an axis: where, in the units of the chart, and its text."""

    at: float
    text: str


class Chart(NamedTuple):
    """One chart of 380 x 250; `summary` says in words what it shows."""

    title: str
    summary: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def make_charts(history: Mapping[str, Mapping[int, float]]) -> list[Chart]:
    """Return the charts of loss, accuracy and learning rate over the steps, those that have values.

    `history` has the value at each step of `CURVE_METRICS`, steps ascending. Values that are not finite are left out.
    """
    finite = {
        metric: {step: value for step, value in values.items() if math.isfinite(value)}
        for metric, values in history.items()
    }
    last = max((step for points in finite.values() for step in points), default=0)
    charts = []
    for title, names in _CHARTS.items():
        curves = {name: finite[metric] for metric, name in names.items() if finite.get(metric)}
        if curves:
            charts.append(_make_chart(title, curves, last))
    return charts


def _make_chart(title: str, curves: Mapping[str, Mapping[int, float]], last: int) -> Chart:
    values = [value for curve in curves.values() for value in curve.values()]
    # Of a schedule that divides by 10, the last rates would lie on the axis of a linear scale.
    is_log = title == "Learning rate" and min(values) > 0 and max(values) > LOG_RATIO * min(values)
    scale: Callable[[Any], Any] = np.log10 if is_log else np.asarray
    marks: Any
    if is_log:
        marks = 10.0 ** np.arange(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    else:
        marks = MaxNLocator(4).tick_values(min(values), max(values))
    low, high = scale(min(marks[0], *values)), scale(max(marks[-1], *values))
    steps = [mark for mark in MaxNLocator(4, integer=True).tick_values(0, max(last, 1)) if 0 <= mark <= last]

    def x(step: Any) -> Any:
        return LEFT + (RIGHT - LEFT) * np.asarray(step) / max(last, 1)

    def y(value: Any) -> Any:
        return BOTTOM - (BOTTOM - TOP) * (scale(value) - low) / ((high - low) or 1.0)

    return Chart(
        title,
        "; ".join(_describe(name, curve) for name, curve in curves.items()),
        [Line(name, _points(x, y, curve)) for name, curve in curves.items()],
        [Tick(float(x(step)), f"{step:,.0f}") for step in steps],
        [Tick(float(y(mark)), f"{mark:.3g}") for mark in marks if low <= scale(mark) <= high],
    )


def _points(x: Callable[[Any], Any], y: Callable[[Any], Any], curve: Mapping[int, float]) -> str:
    parts = min(POINTS, len(curve))
    steps, values = (np.array_split(np.array(list(column), float), parts) for column in (curve, curve.values()))
    places = [f"{x(step.mean()):.1f},{y(value.mean()):.1f}" for step, value in zip(steps, values, strict=True)]
    # A line of one point is drawn as a dot, if it has an end.
    return " ".join(places * 2 if len(places) == 1 else places)


def _describe(name: str, curve: Mapping[int, float]) -> str:
    values = list(curve.values())
    return f"{name} from {values[0]:.3g} to {values[-1]:.3g}, lowest {min(values):.3g}, highest {max(values):.3g}"
