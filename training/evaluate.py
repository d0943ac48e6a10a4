"""`python -m training.evaluate (--run ID ... | --checkpoint PATH ... | --weights FILE --recipe NAME) --data DIR`:
accuracy on a split, and a report.

Writes report.json and report.html, and puts them into the MLflow runs that it was asked for. Of several networks, the
probabilities are averaged.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import CommandParser
from errors import InputError
from preprocess.manifest import manifest_digest, read_manifest
from training.class_names import name_classes
from training.cli import resolve, run_command
from training.describe import describe
from training.ensemble import Ensemble
from training.inference import check_data, check_split, open_loader, open_loaders, predict_split
from training.load_model import LoadedModel, add_device_argument, add_model_arguments, load_models, make_dense
from training.loop.step import TOP_K
from training.report.examples import random_samples
from training.report.folder import check_replaceable, prepare_folder, report_files, write_report
from training.report.metrics import Evaluated, MemberResult, Predictions, Report, compare, summarise
from training.report.retrieval import Retrieval
from training.retrieval import retrieve

if TYPE_CHECKING:
    from mlflow import MlflowClient  # takes seconds to import: weights and checkpoints do without


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; exits with code 2 where it makes no sense."""
    parser = CommandParser(prog="python -m training.evaluate", description="Measure a network, or several, on a split.")
    networks = add_model_arguments(parser, several=True)
    networks.add_argument(
        "--compare", nargs=2, dest="run", metavar=("RUN_A", "RUN_B"), help="two runs side by side, with McNemar's test"
    )
    add_device_argument(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of shards")
    parser.add_argument("--split", default="val", help="of the shards: val, test or train (default: val)")
    parser.add_argument("--crops", type=int, choices=(1, 10), default=1, help="1: the centre; 10: as in 2012")
    parser.add_argument(
        "--dense",
        action="store_true",
        help="fc6 to fc8 as convolutions over the complete central square, their logits averaged",
    )
    parser.add_argument(
        "--retrieve-from",
        metavar="SPLIT",
        help="also find the nearest images of this split by the last hidden layer's features, as in 2012",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: reports/ and a name)")
    parser.add_argument("--overwrite", action="store_true", help="replace the report of another evaluation in DIR")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images (default: 128)")
    options = parser.parse_args(arguments)
    if options.dense and options.crops != 1:
        raise InputError(f"--crops is {options.crops}: --dense sees the complete square; use 1")
    if options.retrieve_from is not None and (options.dense or options.retrieve_from == options.split):
        problem = "--dense has no single features" if options.dense else "the images would find themselves"
        raise InputError(f"--retrieve-from is {options.retrieve_from}: {problem}; use another split, without --dense")
    return options


def main(arguments: Sequence[str]) -> None:
    """Evaluate, write the report, log it into the run, and say where it is."""
    options, project = parse(arguments), Path.cwd()
    data = resolve("--data", options.data, project, must_exist=True)
    ensemble = Ensemble(load_models(options, project, data))
    manifest = read_manifest(data)
    for trained in ensemble.members:
        check_data(trained, manifest, data)
    check_split("--split", manifest, options.split, data)
    if options.retrieve_from is not None:
        check_split("--retrieve-from", manifest, options.retrieve_from, data)
        check_single(ensemble)
    evaluated = Evaluated(
        split=options.split,
        crops=options.crops,
        view="dense" if options.dense else f"{options.crops}{'crop' if options.crops == 1 else 'crops'}",
        weights_sha256=ensemble.weights_sha256,
        manifest_sha256=manifest_digest(data),
    )
    name = report_name(ensemble, evaluated)
    folder = prepare_folder(resolve("--output", options.output or Path("reports", name), project))
    if not options.overwrite:
        check_replaceable(folder, evaluated)
    if options.dense:
        ensemble = Ensemble(tuple(make_dense(trained) for trained in ensemble.members))
    loaders = open_loaders(ensemble, data, options.split, options.batch_size, options.crops)
    started = time.perf_counter()
    predictions, members = predict_split(ensemble, loaders)
    seconds = time.perf_counter() - started
    retrieval = None if options.retrieve_from is None else find_nearest(ensemble.members[0], data, options)
    report = summarise(
        predictions,
        name_classes(manifest.classes, options.class_names),
        evaluated,
        checkpoint=ensemble.name,
        images_per_second=len(predictions.labels) / seconds,
        members=member_results(ensemble, members),
        comparison=compare(*(one.correct for one in members)) if len(members) == 2 else None,
        retrieval=None if retrieval is None else retrieval.result(),
    )
    (shown,) = random_samples(predictions, 1, seed=0)
    subject = describe(ensemble, manifest, project, loaders[0].example(shown), retrieval)
    write_report(folder, report, predictions, subject, loaders[0].example)
    print_result(report, folder)
    for trained in ensemble.members:
        if trained.run_id is not None:
            log_report(trained.run_id, report, folder, name)


def report_name(ensemble: Ensemble, evaluated: Evaluated) -> str:
    """Return a name for the report of an evaluation, with the run, the step, the split and the view.

    On other data than that of the training, it ends in the first digits of the manifest's SHA-256.
    """
    name = f"{ensemble.label}-{evaluated['split']}-{evaluated['view']}"
    digest = evaluated["manifest_sha256"]
    same = all(trained.data.manifest_sha256 == digest for trained in ensemble.members)
    return name if same else f"{name}-{digest[:8]}"


def print_result(report: Report, folder: Path) -> None:
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
    print(f"report {folder / 'report.html'}", flush=True)


def _top5(accuracy: float | None) -> str:
    return "" if accuracy is None else f", top-5 {accuracy:.4f}"


def check_single(ensemble: Ensemble) -> None:
    """Raise `InputError` for an ensemble: the features of its networks cannot be compared."""
    if len(ensemble.members) > 1:
        raise InputError(
            f"--retrieve-from cannot be combined with {len(ensemble.members)} networks; use it with each of them"
        )


def find_nearest(trained: LoadedModel, data: str, options: argparse.Namespace) -> Retrieval:
    """Return the nearest images of the split `--retrieve-from`; raise `InputError` where it has too few."""
    queries, images = (
        open_loader(trained, data, split, options.batch_size, crops=1)
        for split in (options.split, options.retrieve_from)
    )
    return retrieve(trained, queries, images, options.retrieve_from)


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


def log_report(run_id: str, report: Report, folder: Path, name: str) -> None:
    """Put the report's numbers and files into the MLflow run.

    The numbers of val and one crop are `eval/*`; another split or view is part of the name: `eval/test/10crops/*`.
    Those of an ensemble, in each of its runs, are `eval/NAME/*`. The files are in `evaluation/NAME` there, less the id
    of the run.

    Raises:
        SystemExit: it cannot, with code 1 and a line that says so.
    """
    from training import tracking

    try:
        client = tracking.open_client(tracking.tracking_uri(Path.cwd()))
        _log_report(client, run_id, report, folder, name.removeprefix(f"{run_id}-"))
        tracking.update_description(client, run_id)
    except Exception as error:  # each kind of store has exceptions of its own
        sys.exit(f"error: run {run_id} has not taken the report: {tracking.describe(error)}; it is in {folder}")


def _log_report(client: MlflowClient, run_id: str, report: Report, folder: Path, name: str) -> None:
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
    for metric, value in numbers.items():
        if value is not None:
            client.log_metric(run_id, f"{prefix}/{metric}", value)
    for path in report_files(folder):
        client.log_artifact(run_id, str(folder / path), str(Path("evaluation", name, path).parent))


if __name__ == "__main__":
    sys.exit(run_command(main))
