"""The comparison of two networks: `comparison.json`, and `comparison.html`, which shows them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from preprocess.manifest import ClassEntry
from training.class_names import unique_names
from training.loop.step import TOP_K
from training.report.curves import MARKS, History, make_charts
from training.report.examples import Card, ReadExample, make_card, surest
from training.report.kernels import describe_structure, kernel_grids
from training.report.metrics import Evaluated, Predictions, check_predictions, class_results
from training.report.output import encode_record, prepare_folder, replace_files
from training.report.page import EXTREMES, TABLE_CLASSES, render
from training.report.paired import LEVEL, Comparison, compare, wilson_interval

COMPARISON_NAME = "comparison.json"
COMPARISON_PAGE = "comparison.html"
FILE_NAMES = (COMPARISON_NAME, COMPARISON_PAGE)


@dataclass(frozen=True)
class Side:
    """One of the two networks, with its predictions of the split."""

    name: str
    """Name of its MLflow run."""
    run_id: str
    checkpoint: str
    """Where its weights come from, for people."""
    network: str
    parameters: int
    weights_sha256: str
    fields: Mapping[str, Any]
    """Its configuration, flattened."""
    conv1: np.ndarray
    """Weights (F, 3 or 1, k, k), the filters `towers` equal parts."""
    towers: int
    history: History
    """Of `training.report.curves.CURVE_METRICS`."""
    predictions: Predictions


class SideResult(TypedDict):
    """One network in `comparison.json`; intervals are low and high, 95 % (Wilson); `top5` as in `Report`."""

    name: str
    run_id: str
    checkpoint: str
    network: str
    parameters: int
    weights_sha256: str
    top1: float
    top1_interval: list[float]
    top5: float | None
    top5_interval: list[float] | None
    loss: float


class ClassDifference(TypedDict):
    """The top-1 accuracies of a class, and second less first; null for a class without samples."""

    id: str
    name: str
    samples: int
    first: float | None
    second: float | None
    difference: float | None


class FieldDifference(TypedDict):
    """A field of the configuration that differs; null where one of them lacks it."""

    field: str
    first: Any
    second: Any


class ComparisonReport(Evaluated, Comparison):
    """The content of `comparison.json`; `weights_sha256` is of both, in their order.

    `checkpoint` names both. `per_class` is in the order of the labels.
    """

    checkpoint: str
    samples: int
    networks: list[SideResult]
    per_class: list[ClassDifference]
    fields: list[FieldDifference]


Sides = tuple[Side, Side]


def summarise_comparison(sides: Sides, classes: Sequence[ClassEntry], evaluated: Evaluated) -> ComparisonReport:
    """Return the content of `comparison.json`.

    Raises:
        InputError: the split is empty, or a loss or probability is not finite.
    """
    for side in sides:
        check_predictions(side.predictions, len(classes), evaluated["split"], side.checkpoint)
    first, second = (side.predictions for side in sides)
    return ComparisonReport(
        **evaluated,
        checkpoint=" against ".join(side.checkpoint for side in sides),
        samples=len(first.labels),
        **compare(first.correct, second.correct),
        networks=[_side_result(side, len(classes)) for side in sides],
        per_class=_class_differences(first, second, classes),
        fields=_field_differences(*(side.fields for side in sides)),
    )


def _side_result(side: Side, classes: int) -> SideResult:
    predictions, samples = side.predictions, len(side.predictions.labels)
    top1 = int(predictions.correct.sum())
    top5 = int(predictions.hits.sum()) if classes >= TOP_K else None
    return SideResult(
        name=side.name,
        run_id=side.run_id,
        checkpoint=side.checkpoint,
        network=side.network,
        parameters=side.parameters,
        weights_sha256=side.weights_sha256,
        top1=top1 / samples,
        top1_interval=list(wilson_interval(top1, samples)),
        top5=None if top5 is None else top5 / samples,
        top5_interval=None if top5 is None else list(wilson_interval(top5, samples)),
        loss=predictions.mean_loss,
    )


def _class_differences(first: Predictions, second: Predictions, classes: Sequence[ClassEntry]) -> list[ClassDifference]:
    rows = zip(*(class_results(predictions, classes) for predictions in (first, second)), strict=True)
    return [
        ClassDifference(
            id=one["id"],
            name=one["name"],
            samples=one["samples"],
            first=one["top1"],
            second=other["top1"],
            difference=None if one["top1"] is None or other["top1"] is None else other["top1"] - one["top1"],
        )
        for one, other in rows
    ]


def _field_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[FieldDifference]:
    names = dict.fromkeys([*first, *second])
    pairs = ((name, first.get(name), second.get(name)) for name in names)
    return [FieldDifference(field=name, first=one, second=other) for name, one, other in pairs if one != other]


class PairCard(NamedTuple):
    """A sample with the guesses of both networks."""

    first: Card
    second: Card


CARDS = 8
KERNELS_PER_ROW = 8
"""Half of those of a report: two runs share the width."""


def only_one_right(
    sides: Sides, names: Sequence[str], read_example: ReadExample
) -> tuple[list[PairCard], list[PairCard]]:
    """Return samples that only the first network has right, and such of the second, those it is surest of first."""
    both = [side.predictions for side in sides]

    def card(position: int) -> PairCard:
        example = read_example(position)
        return PairCard(*(make_card(predictions, names, position, example) for predictions in both))

    chosen = (surest(one, one.correct & ~other.correct, CARDS) for one, other in (both, both[::-1]))
    first, second = ([card(position) for position in positions] for positions in chosen)
    return first, second


def write_comparison(
    folder: Path | str, report: ComparisonReport, sides: Sides, data: str, read_example: ReadExample
) -> None:
    """Write `comparison.json` and `comparison.html` into `folder`, replacing an older comparison; other files stay.

    Everything is drawn before a file is touched. A folder that has a `comparison.json` has a complete comparison.

    Args:
        folder: made if it is missing.
        report: of `summarise_comparison`.
        sides: the same networks.
        data: the name of the data set.
        read_example: returns the samples of the split.

    Raises:
        InputError: `folder` cannot be written to.
    """
    folder = prepare_folder(folder)
    page = render_comparison(report, sides, data, read_example)
    replace_files(folder, {COMPARISON_PAGE: page.encode(), COMPARISON_NAME: encode_record(report)}, FILE_NAMES)


def render_comparison(report: ComparisonReport, sides: Sides, data: str, read_example: ReadExample) -> str:
    """Return the page; every string from the data set and the runs is escaped."""
    classes = report["per_class"]
    names = unique_names([ClassEntry(row["id"], row["name"]) for row in classes])
    # Those that the first does better come first, those without samples last.
    ranked = sorted(range(len(classes)), key=lambda label: _rank(classes[label]["difference"]))
    rows = [(label, classes[label]) for label in ranked]
    ahead: list[Callable[[float], bool]] = [lambda difference: difference < 0, lambda difference: difference > 0]
    extremes = [
        [row for row in order if row[1]["difference"] is not None and is_ahead(row[1]["difference"])][:EXTREMES]
        for order, is_ahead in zip((rows, rows[::-1]), ahead, strict=True)
    ]
    context = {
        "report": report,
        "both": list(zip(MARKS, report["networks"], strict=True)),
        "data": data,
        "digits": 1 if report["samples"] < 10_000 else 2,
        "names": names,
        "has_top5": report["networks"][0]["top5"] is not None,
        "rows": rows,
        "largest": max((abs(row["difference"]) for row in classes if row["difference"]), default=0.0),
        "extremes": extremes if len(classes) > TABLE_CLASSES else None,
        "level": LEVEL,
        "charts": make_charts(*(side.history for side in sides)),
        "kernels": [
            (kernel_grids(side.conv1, side.towers, KERNELS_PER_ROW), describe_structure(side.conv1)) for side in sides
        ],
        "cards": only_one_right(sides, names, read_example),
    }
    return render("comparison.html.j2", context)


def _rank(difference: float | None) -> tuple[bool, float]:
    return difference is None, difference or 0.0
