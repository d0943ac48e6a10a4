"""Two networks side by side: `training.evaluate --compare`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from training.describe import describe_side
from training.ensemble import Ensemble
from training.evaluation import Evaluation, log_evaluation
from training.inference import SplitPredictions
from training.report.comparison import (
    COMPARISON_PAGE,
    FILE_NAMES,
    ComparisonReport,
    summarise_comparison,
    write_comparison,
)
from training.report.curves import MARKS
from training.report.examples import ReadExample
from training.report.paired import LEVEL


def pair_sha256(pair: Ensemble) -> str:
    """Return a SHA-256 of the two networks in their order: that of the SHA-256s of their weights, a line each."""
    return hashlib.sha256("".join(f"{one.weights_sha256}\n" for one in pair.members).encode()).hexdigest()


def finish_comparison(
    evaluation: Evaluation, predictions: SplitPredictions, read_example: ReadExample, project: Path
) -> None:
    """Write, print and log the comparison of two runs.

    Args:
        evaluation: of two networks, each of an MLflow run.
        predictions: theirs.
        read_example: returns the samples of the split.
        project: the folder of the default MLflow store.

    Raises:
        InputError: the store fails, or outputs are not finite.
        SystemExit: a run does not take the results.
    """
    name, folder, pair = evaluation.name, evaluation.folder, evaluation.ensemble.members
    first, second = (
        describe_side(trained, project, guesses) for trained, guesses in zip(pair, predictions.members, strict=True)
    )
    report = summarise_comparison((first, second), evaluation.classes, evaluation.evaluated)
    write_comparison(folder, report, (first, second), evaluation.manifest.name, read_example)
    print_comparison(report, folder)
    for side in (first, second):
        log_evaluation(side.run_id, comparison_metrics(report, name), folder, FILE_NAMES, name)


def print_comparison(report: ComparisonReport, folder: Path) -> None:
    """Print the accuracy of both, where they differ, whether that may be chance, and where the page is."""
    for mark, one in zip(MARKS, report["networks"], strict=True):
        top5 = "" if one["top5"] is None else f", top-5 {one['top5']:.4f}"
        print(f"{mark}: top-1 {one['top1']:.4f}{top5}: {one['name']}, {one['checkpoint']}")
    both, either = f"{report['both_right']} right by both", f"{report['both_wrong']} by neither"
    print(f"{both}, {report['first_only']} only by A, {report['second_only']} only by B, {either}")
    low, high = report["difference_interval"]
    print(f"B - A: {report['difference']:+.4f} in top-1, 95 % interval {low:+.4f} to {high:+.4f}")
    verdict = "is hardly chance" if report["p_value"] < LEVEL else "may be chance"
    print(f"McNemar's test p = {report['p_value']:.3g}: the difference {verdict}")
    print(f"comparison {folder / COMPARISON_PAGE}", flush=True)


def comparison_metrics(report: ComparisonReport, name: str) -> dict[str, float]:
    """Return the numbers of a comparison by the names that they have in both MLflow runs."""
    return {f"eval/{name}/top1_difference": report["difference"], f"eval/{name}/p_value": report["p_value"]}
