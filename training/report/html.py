"""`report.html`: one file that holds everything it shows and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.reading.samples import StoredSample
from training.report.curves import History, make_charts
from training.report.examples import ReadExample, ReportExamples, make_thumbnail
from training.report.feature_maps import MAPS, LayerMaps, maps_grid
from training.report.kernels import describe_structure, kernel_grids
from training.report.metrics import (
    ClassResult,
    Predictions,
    Report,
    accuracy_histogram,
    calibration_error,
    confidence_bins,
    confusion_matrix,
)
from training.report.page import EXTREMES, TABLE_CLASSES, render
from training.report.paired import LEVEL
from training.report.retrieval import Retrieval, make_rows

MATRIX_CLASSES = 50  # more do not fit on a screen


@dataclass(frozen=True)
class Subject:
    """The evaluated network, or ensemble: names for the page, and conv1's weights to draw.

    `conv1` is (F, 3 or 1, k, k), its filters `towers` equal parts; None for an ensemble, which has several.
    """

    network: str
    parameters: int
    data: str
    conv1: np.ndarray | None
    towers: int = 1
    retrieval: Retrieval | None = None
    """Nearest images; None where it was not asked for."""
    maps: tuple[LayerMaps, ...] = ()
    """Feature maps of the sample `maps_of`, first layer first; empty for an ensemble."""
    maps_of: StoredSample | None = None
    history: History = field(default_factory=dict)
    """Of `training.report.curves.CURVE_METRICS`; empty if not known."""


def has_matrix(report: Report) -> bool:
    """Tell whether the classes are few enough for a confusion matrix to be read."""
    return len(report["per_class"]) <= MATRIX_CLASSES


def render_html(
    report: Report,
    predictions: Predictions,
    subject: Subject,
    examples: ReportExamples,
    names: Sequence[str],
    read_example: ReadExample,
) -> str:
    """Return the page; every string from the data set is escaped. `names` are those of the classes, no two the same."""
    rows = report["per_class"]
    bins = confidence_bins(predictions)
    most_confident = _axis_top(max(b.samples for b in bins))
    context: dict[str, Any] = {
        "report": report,
        "subject": subject,
        "random": examples.random,
        "errors": examples.errors,
        "pairs": examples.pairs,
        "digits": 1 if report["samples"] < 10_000 else 2,
        "names": names,
        "has_top5": report["top5"] is not None,
        "wrong": int((~predictions.correct).sum()),
        "matrix": confusion_matrix(predictions, len(rows)).tolist() if has_matrix(report) else None,
        "all_classes": list(enumerate(rows)),
        "extremes": _extremes(rows) if len(rows) > TABLE_CLASSES else None,
        "spread": None if has_matrix(report) else _spread(rows),
        "most_classes": _axis_top(max(accuracy_histogram(rows))),
        "reliability": [
            Column(f"{b.range} sure: {b.correct} of {b.samples} right", b.accuracy or 0.0, few=b.samples < 10)
            for b in bins
        ],
        "confidence": [
            Column(
                f"{b.range} sure: {b.correct} right, {b.samples - b.correct} wrong",
                b.correct / most_confident,
                (b.samples - b.correct) / most_confident,
            )
            for b in bins
        ],
        "most_confident": most_confident,
        "calibration_error": calibration_error(bins),
        "level": LEVEL,
        "charts": make_charts(subject.history),
        "kernels": [] if subject.conv1 is None else kernel_grids(subject.conv1, subject.towers),
        "rows": [] if subject.retrieval is None else make_rows(subject.retrieval, names, read_example),
        "maps": [(layer.title, maps_grid(layer)) for layer in subject.maps],
        "maps_shown": MAPS,
        "maps_thumbnail": None if subject.maps_of is None else make_thumbnail(subject.maps_of.jpeg),
        "structure": None if subject.conv1 is None else describe_structure(subject.conv1),
        "kernel_limit": None if subject.conv1 is None else float(np.nanmax(np.abs(subject.conv1))),
    }
    return render("report.html.j2", context)


def _extremes(rows: Sequence[ClassResult]) -> tuple[list[tuple[int, ClassResult]], ...]:
    """Return the worst classes, worst first, and the best, best first, each with its label."""
    labels = [label for label, row in enumerate(rows) if row["samples"]]
    worst, best = (sorted(labels, key=lambda label: sign * (rows[label]["top1"] or 0.0)) for sign in (1, -1))
    return tuple([(label, rows[label]) for label in chosen[:EXTREMES]] for chosen in (worst, best))


class Column(NamedTuple):
    """One column of a chart; heights as parts of the axis, `upper` on top of `lower`; `few` is drawn pale."""

    title: str
    lower: float
    upper: float = 0.0
    few: bool = False


def _spread(rows: Sequence[ClassResult]) -> list[Column]:
    counts = accuracy_histogram(rows)
    step, top = 100 // len(counts), _axis_top(max(counts))
    return [Column(f"{i * step} to {(i + 1) * step} %: {n} classes", n / top) for i, n in enumerate(counts)]


def _axis_top(largest: int) -> int:
    """Return the round even number at which an axis ends that has to hold `largest`."""
    unit = 10 ** (len(str(largest)) - 1)
    steps = (unit * tenths // 10 for tenths in (10, 12, 16, 20, 30, 40, 50, 60, 80, 100))
    return next(step for step in steps if step >= largest and step % 2 == 0)
