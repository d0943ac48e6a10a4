"""The report of a network, or of the average of several: from predictions to a folder, MLflow runs and a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.describe import describe
from training.ensemble import Ensemble
from training.evaluation import Evaluation, log_evaluation
from training.inference import SplitPredictions
from training.loop.step import TOP_K
from training.report.examples import ReadExample, random_samples
from training.report.folder import PAGE_NAME, report_files, write_report
from training.report.html import Subject
from training.report.kernels import has_structure
from training.report.metrics import MemberResult, Predictions, Report, summarise
from training.report.paired import compare
from training.report.retrieval import Retrieval


def finish_report(
    evaluation: Evaluation,
    predictions: SplitPredictions,
    seconds: float,
    retrieval: Retrieval | None,
    read_example: ReadExample,
    project: Path,
) -> None:
    """Write, print and log the report of a network, or of the average of several; `seconds` is what it took."""
    ensemble, average = evaluation.ensemble, predictions.average
    report = summarise(
        average,
        evaluation.classes,
        evaluation.evaluated,
        checkpoint=ensemble.name,
        images_per_second=len(average.labels) / seconds,
        members=member_results(ensemble, predictions.members),
        comparison=compare(*(one.correct for one in predictions.members)) if len(ensemble.members) == 2 else None,
        retrieval=None if retrieval is None else retrieval.result(),
    )
    (shown,) = random_samples(average, 1, seed=0)
    subject = describe(ensemble, evaluation.manifest, project, read_example(shown), retrieval)
    write_report(evaluation.folder, report, average, subject, read_example)
    print_result(report, subject, evaluation.folder)
    for trained in ensemble.members:
        if trained.run_id is not None:
            metrics = report_metrics(report, evaluation.name)
            name = evaluation.name.removeprefix(f"{trained.run_id}-")
            log_evaluation(trained.run_id, metrics, evaluation.folder, report_files(evaluation.folder), name)


def member_results(ensemble: Ensemble, predictions: Sequence[Predictions]) -> list[MemberResult]:
    """Return the accuracy of each network of several; nothing for a single one."""
    if len(ensemble.members) == 1:
        return []
    has_top5 = len(ensemble.members[0].data.classes) >= TOP_K
    return [
        MemberResult(
            checkpoint=member.name,
            top1=float(one.correct.mean()),
            top5=float(one.hits.any(axis=1).mean()) if has_top5 else None,
        )
        for member, one in zip(ensemble.members, predictions, strict=True)
    ]


def report_metrics(report: Report, name: str) -> dict[str, float | None]:
    """Return the numbers of a report by the names that they have in the MLflow run.

    The numbers of val and one crop are `eval/*`; another split or view is part of the name: `eval/test/10crops/*`.
    Those of an ensemble, in each of its runs, are `eval/NAME/*`.
    """
    if report["members"]:
        prefix = f"eval/{name}"
    else:
        parts = (report["split"], "val"), (report["view"], "1crop")
        prefix = "/".join(["eval", *(part for part, usual in parts if part != usual)])
    numbers = {
        "top1": report["top1"],
        "top5": report["top5"],
        "balanced_accuracy": report["balanced_accuracy"],
        "loss": report["loss"],
        "precision_at_6": None if report["retrieval"] is None else report["retrieval"]["precision_at_6"],
    }
    return {f"{prefix}/{metric}": value for metric, value in numbers.items()}


def print_result(report: Report, subject: Subject, folder: Path) -> None:
    """Print the accuracy of each network of an ensemble, that of all, and where the report is."""
    for member in report["members"]:
        print(f"top-1 {member['top1']:.4f}{_top5(member['top5'])}: {member['checkpoint']}")
    if (both := report["comparison"]) is not None:
        only = f"{both['first_only']} right only by the first, {both['second_only']} only by the second"
        print(f"{only}: McNemar's test p = {both['p_value']:.3g}")
    samples = f"{report['samples']} samples of {report['split']}"
    print(f"top-1 {report['top1']:.4f}{_top5(report['top5'])} on {samples}")
    if (retrieval := report["retrieval"]) is not None:
        found = f"{retrieval['precision_at_6']:.4f}, by pixels {retrieval['pixel_precision_at_6']:.4f}"
        print(f"precision at 6 {found} among {retrieval['images']} images of {retrieval['split']}")
    if subject.conv1 is not None and not has_structure(subject.conv1):
        print("the kernels of conv1 have no structure yet: they are still close to their random start")
    print(f"report {folder / PAGE_NAME}", flush=True)


def _top5(accuracy: float | None) -> str:
    return "" if accuracy is None else f", top-5 {accuracy:.4f}"
