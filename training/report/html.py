"""`report.html`: one file that holds everything it shows and loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from scipy.stats import binomtest

from training.report.examples import Exhibits
from training.report.metrics import (
    ClassResult,
    ConfidenceBin,
    Predictions,
    Report,
    accuracy_histogram,
    calibration_error,
    confidence_bins,
    confusion_matrix,
)
from training.report.pictures import kernel_grids, tower_titles

MATRIX_CLASSES = 50  # more do not fit on a screen
TABLE_CLASSES = 60  # more are folded away behind the worst and the best
EXTREMES = 10


@dataclass(frozen=True)
class Subject:
    """The evaluated network: names for the page, and conv1's weights to draw.

    `conv1` is (F, 3 or 1, k, k), None for a network without such a layer; its filters are `towers` equal parts.
    """

    network: str
    parameters: int
    data: str
    conv1: np.ndarray | None = None
    towers: int = 1


def has_matrix(report: Report) -> bool:
    """Tell whether the classes are few enough for a confusion matrix to be read."""
    return len(report["per_class"]) <= MATRIX_CLASSES


def render_html(report: Report, predictions: Predictions, subject: Subject, exhibits: Exhibits) -> str:
    """Return the page; every string from the data set is escaped."""
    rows = report["per_class"]
    bins = confidence_bins(predictions)
    most_confident = _axis_top(max(b.samples for b in bins))
    context: dict[str, Any] = {
        "report": report,
        "subject": subject,
        "random": exhibits.random,
        "errors": exhibits.errors,
        "pairs": exhibits.pairs,
        "digits": 1 if report["samples"] < 10_000 else 2,
        "headline": _headline(report),
        "names": [row["name"] for row in rows],
        "has_top5": report["top5"] is not None,
        "wrong": int((~predictions.correct).sum()),
        "matrix": confusion_matrix(predictions, len(rows)).tolist() if has_matrix(report) else None,
        "all_classes": list(enumerate(rows)),
        "extremes": _extremes(rows) if len(rows) > TABLE_CLASSES else None,
        "spread": None if has_matrix(report) else _spread(rows),
        "most_classes": _axis_top(max(accuracy_histogram(rows))),
        "reliability": [_reliability(b) for b in bins],
        "confidence": [_confidence(b, most_confident) for b in bins],
        "most_confident": most_confident,
        "calibration_error": calibration_error(bins),
        **_kernels(subject),
    }
    return _environment().get_template("template.html.j2").render(context)


def _headline(report: Report) -> list[tuple[str, float | None, float | None, tuple[float, float] | None]]:
    return [
        (
            name,
            accuracy,
            error,
            None if accuracy is None else _confidence_interval(accuracy, report["samples"]),
        )
        for name, accuracy, error in (
            ("Top-1", report["top1"], report["top1_error"]),
            ("Top-5", report["top5"], report["top5_error"]),
        )
    ]


def _confidence_interval(accuracy: float, samples: int) -> tuple[float, float]:
    """Return the interval that holds the true accuracy with 95 % confidence (Wilson 1927)."""
    found = binomtest(round(accuracy * samples), samples).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _extremes(rows: Sequence[ClassResult]) -> tuple[list[tuple[int, ClassResult]], ...]:
    """Return the worst classes, worst first, and the best, best first, each with its label."""
    known = [(row["top1"], label) for label, row in enumerate(rows) if row["top1"] is not None]
    worst = sorted(known)[:EXTREMES]
    best = sorted(known, key=lambda item: (-item[0], item[1]))[:EXTREMES]
    return tuple([(label, rows[label]) for _, label in chosen] for chosen in (worst, best))


def _reliability(b: ConfidenceBin) -> dict[str, Any]:
    title = f"{b.low:.0%} to {b.high:.0%} sure: {b.correct} of {b.samples} right"
    return {"lower": b.accuracy or 0.0, "upper": 0.0, "few": b.samples < 10, "title": title}


def _confidence(b: ConfidenceBin, most: int) -> dict[str, Any]:
    title = f"{b.low:.0%} to {b.high:.0%} sure: {b.correct} right, {b.samples - b.correct} wrong"
    return {"lower": b.correct / most, "upper": (b.samples - b.correct) / most, "few": False, "title": title}


def _spread(rows: Sequence[ClassResult]) -> list[dict[str, Any]]:
    counts = accuracy_histogram(rows)
    step, top = 100 // len(counts), _axis_top(max(counts))
    return [
        {"lower": n / top, "upper": 0.0, "few": False, "title": f"{i * step} to {(i + 1) * step} %: {n} classes"}
        for i, n in enumerate(counts)
    ]


def _axis_top(largest: int) -> int:
    """Return the round even number at which an axis ends that has to hold `largest`."""
    unit = 10 ** (len(str(largest)) - 1)
    steps = (unit * tenths // 10 for tenths in (10, 12, 16, 20, 30, 40, 50, 60, 80, 100))
    return next(step for step in steps if step >= largest and step % 2 == 0)


def _kernels(subject: Subject) -> dict[str, Any]:
    if subject.conv1 is None:
        return {"kernels": None}
    titles = tower_titles(len(subject.conv1), subject.towers)
    grids = kernel_grids(subject.conv1, subject.towers)
    return {
        "kernels": list(zip(titles, grids, strict=True)),
        "kernel_limit": float(np.nanmax(np.abs(subject.conv1))),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, fixed=_fixed, count=_count, rate=_rate, data_uri=_data_uri)
    return environment


def _percent(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value * 100:.{digits}f} %"


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _count(value: int) -> str:
    return f"{value:,}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _data_uri(image: Image.Image) -> str:
    """Return an image as a data URI: PNG where pixels must stay exact, JPEG for photographs."""
    exact = image.mode == "RGBA" or image.width < 96
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if exact else "JPEG", optimize=True, **({} if exact else {"quality": 85}))
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
