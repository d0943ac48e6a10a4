"""The learning curves of one training or of two, as charts for the pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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


History = Mapping[str, Mapping[int, float]]
"""The value of metrics at each step, steps ascending."""
MARKS = "AB"
"""The letters of two trainings, in this order."""


class Mark(NamedTuple):
    """The letter of a training next to its line, in the units of the chart."""

    text: str
    x: float
    y: float


class Line(NamedTuple):
    """One line of a chart: its name, its points as SVG has them, "x,y x,y", and its look.

    `second_hue` and `is_dashed` tell lines apart; of two trainings, the hue is that of the training.
    """

    name: str
    points: str
    second_hue: bool
    is_dashed: bool
    mark: Mark | None


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


class _Curve(NamedTuple):
    name: str
    points: Mapping[int, float]
    training: int
    """0 or 1."""
    metric: int
    """0 or 1: its place in the chart."""
    mark: str
    """The letter of the training; empty for a single one."""


def make_charts(*histories: History) -> list[Chart]:
    """Return the charts of loss, accuracy and learning rate over the steps, those that have values.

    `histories` are those of one training or of two, of `CURVE_METRICS`. Values that are not finite are left out.
    """
    finite = [
        {
            metric: {step: value for step, value in values.items() if math.isfinite(value)}
            for metric, values in history.items()
        }
        for history in histories
    ]
    last = max((step for history in finite for points in history.values() for step in points), default=0)
    charts = []
    for title, names in _CHARTS.items():
        curves = [
            _Curve(f"{mark}: {name}" if mark else name, points, training, metric, mark)
            for training, (history, mark) in enumerate(zip(finite, MARKS if len(finite) > 1 else [""], strict=True))
            for metric, (key, name) in enumerate(names.items())
            if (points := history.get(key))
        ]
        if curves:
            charts.append(_make_chart(title, curves, last))
    return charts


def _make_chart(title: str, curves: Sequence[_Curve], last: int) -> Chart:
    values = [value for curve in curves for value in curve.points.values()]
    # Of a schedule that divides by 10, the last rates would lie on the axis of a linear scale.
    is_log = title == "Learning rate" and min(values) > 0 and max(values) > LOG_RATIO * min(values)
    scale: Callable[[Any], Any] = np.log10 if is_log else np.asarray
    marks: Any
    if is_log:
        marks = 10.0 ** np.arange(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    else:
        # Around a constant, half of it; else its digits would be those of rounding.
        margin = (abs(values[0]) / 2 or 1.0) if min(values) == max(values) else 0.0
        marks = MaxNLocator(4).tick_values(min(values) - margin, max(values) + margin)
    low, high = scale(min(marks[0], *values)), scale(max(marks[-1], *values))
    steps = [mark for mark in MaxNLocator(4, integer=True).tick_values(0, max(last, 1)) if 0 <= mark <= last]

    def x(step: Any) -> Any:
        return LEFT + (RIGHT - LEFT) * np.asarray(step) / max(last, 1)

    def y(value: Any) -> Any:
        return BOTTOM - (BOTTOM - TOP) * (scale(value) - low) / ((high - low) or 1.0)

    return Chart(
        title,
        "; ".join(_describe(curve) for curve in curves),
        [_make_line(x, y, curve) for curve in curves],
        [Tick(float(x(step)), f"{step:,.0f}") for step in steps],
        [Tick(float(y(mark)), f"{mark:.3g}") for mark in marks if low <= scale(mark) <= high],
    )


def _make_line(x: Callable[[Any], Any], y: Callable[[Any], Any], curve: _Curve) -> Line:
    parts = min(POINTS, len(curve.points))
    columns = (np.array(list(column), float) for column in (curve.points, curve.points.values()))
    steps, values = (np.array_split(column, parts) for column in columns)
    places = [(float(x(step.mean())), float(y(value.mean()))) for step, value in zip(steps, values, strict=True)]
    mark = None
    if curve.mark:
        # The letters of two lines that lie on each other stand at different places, above and below.
        at = places[(1 + curve.training) * (len(places) - 1) // 3]
        mark = Mark(curve.mark, at[0], at[1] + (-5.0 if curve.training == 0 else 12.0))
    # A line of one point is drawn as a dot, if it has an end.
    drawn = places * 2 if len(places) == 1 else places
    return Line(
        curve.name,
        " ".join(f"{left:.1f},{top:.1f}" for left, top in drawn),
        second_hue=curve.training == 1 if curve.mark else curve.metric == 1,
        is_dashed=curve.metric == 1,
        mark=mark,
    )


def _describe(curve: _Curve) -> str:
    values = list(curve.points.values())
    return f"{curve.name} from {values[0]:.3g} to {values[-1]:.3g}, lowest {min(values):.3g}, highest {max(values):.3g}"
