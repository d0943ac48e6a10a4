"""The table of a study: means over the seeds, and paired differences from the base."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import t

from training.ablation.plan import BASE, Key, Study

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Result:
    """What a finished child run has: accuracies on val, 0 to 1, and the seconds of its training."""

    top1: float
    top5: float | None
    seconds: float


@dataclass(frozen=True)
class Difference:
    """Differences from the base with the same seed, in accuracy."""

    by_seed: dict[int, float]
    mean: float
    half_width: float | None
    """Half of the 95 % confidence interval of the mean; None with fewer than two seeds."""


@dataclass(frozen=True)
class Row:
    """A line of the table; None where no child run of the variant is finished."""

    variant: str
    words: str
    n: int
    top1: float | None
    top5: float | None
    lowest: float | None
    highest: float | None
    difference: Difference | None
    """In top-1; None for the base, and where no seed has both."""
    seconds: float | None
    paper: str


def make_rows(study: Study, results: Mapping[Key, Result]) -> list[Row]:
    """Return a line for each variant, the base first, from the child runs that are finished."""
    by_variant = {
        variant.name: {seed: results[variant.name, seed] for seed in study.seeds if (variant.name, seed) in results}
        for variant in study.variants
    }
    base = {seed: result.top1 for seed, result in by_variant[BASE].items()}
    rows = []
    for variant in study.variants:
        runs = by_variant[variant.name]
        top1 = {seed: result.top1 for seed, result in runs.items()}
        top5 = [result.top5 for result in runs.values() if result.top5 is not None]
        rows.append(
            Row(
                variant=variant.name,
                words=variant.words,
                n=len(runs),
                top1=_mean(list(top1.values())),
                top5=_mean(top5),
                lowest=min(top1.values(), default=None),
                highest=max(top1.values(), default=None),
                difference=None if variant.name == BASE else paired_difference(top1, base),
                # A variant of the evaluation has the training of the base.
                seconds=None if variant.crops > 1 else _mean([result.seconds for result in runs.values()]),
                paper=variant.paper,
            )
        )
    return rows


def paired_difference(values: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Return the mean of `values` less `base` over the seeds that both have, with Student's interval; None without."""
    by_seed = {seed: value - base[seed] for seed, value in values.items() if seed in base}
    if not by_seed:
        return None
    differences, n = list(by_seed.values()), len(by_seed)
    half_width = None
    if n > 1:
        half_width = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(by_seed, statistics.fmean(differences), half_width)


def to_markdown(rows: list[Row]) -> str:
    """Return the table as Markdown, accuracies from 0 to 1."""
    columns = (
        "variant",
        "n",
        "top-1, mean",
        "top-5, mean",
        "top-1, lowest to highest",
        "top-1, difference from the base with the same seed (95 % interval)",
        "training, s",
        "the paper's own difference",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        spread = "" if row.lowest is None else f"{row.lowest:.4f} to {row.highest:.4f}"
        name = row.words if row.variant == BASE else f"{row.words} (`{row.variant}`)"
        cells = [name, str(row.n), _shown(row.top1), _shown(row.top5), spread, describe(row.difference)]
        cells += ["" if row.seconds is None else f"{row.seconds:.0f}", row.paper]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def describe(difference: Difference | None) -> str:
    """Return a difference in words: the mean, and the ends of its interval, if it has one."""
    if difference is None:
        return ""
    mean, half = difference.mean, difference.half_width
    return f"{mean:+.4f}" + ("" if half is None else f" ({mean - half:+.4f} to {mean + half:+.4f})")


def to_csv(rows: list[Row]) -> str:
    """Return the table as CSV, numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            *("variant", "change", "n", "top1_mean", "top5_mean", "top1_lowest", "top1_highest"),
            *("difference", "difference_low", "difference_high", "pairs", "training_seconds", "paper"),
        ]
    )
    for row in rows:
        gain = row.difference
        ends: list[float | None] = [None, None]
        if gain is not None and gain.half_width is not None:
            ends = [gain.mean - gain.half_width, gain.mean + gain.half_width]
        cells = [row.variant, row.words, row.n, row.top1, row.top5, row.lowest, row.highest]
        cells += [None, None, None, None] if gain is None else [gain.mean, *ends, len(gain.by_seed)]
        writer.writerow([*cells, row.seconds, row.paper])
    return buffer.getvalue()


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
