"""`python -m training.evaluate (--run ID ... | --checkpoint PATH ... | --weights FILE --recipe NAME) --data DIR`:
accuracy on a split, and a report.

Writes report.json and report.html, and puts them into the MLflow runs that it was asked for. Of several networks, the
probabilities are averaged.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from command_line import CommandParser
from errors import InputError
from pipeline.loader import Loader, make_loader
from pipeline.reading.staging import Staging
from preprocess.manifest import Manifest, manifest_digest, read_manifest
from training.class_names import name_classes
from training.cli import resolve, run_command
from training.describe import describe
from training.ensemble import Ensemble, average
from training.load_model import (
    LoadedModel,
    add_device_argument,
    add_model_arguments,
    add_staging_arguments,
    load_models,
    make_dense,
)
from training.loop.step import TOP_K, score
from training.report.examples import random_samples
from training.report.folder import check_replaceable, prepare_folder, report_files, write_report
from training.report.metrics import Comparison, Evaluated, MemberResult, Predictions, Report, compare, summarise
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
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of shards, or its URI in an object store")
    add_staging_arguments(parser)
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
    staging = Staging(options.staging, options.staging_bytes)
    loaders = [
        open_loader(trained, data, options.split, options.batch_size, options.crops, staging)
        for trained in ensemble.views.values()
    ]
    started = time.perf_counter()
    predictions, members, comparison = predict_all(ensemble, loaders)
    seconds = time.perf_counter() - started
    retrieval = None if options.retrieve_from is None else find_nearest(ensemble.members[0], data, options, staging)
    report = summarise(
        predictions,
        name_classes(manifest.classes, options.class_names),
        evaluated,
        checkpoint=ensemble.name,
        images_per_second=len(predictions.labels) / seconds,
        members=members,
        comparison=comparison,
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


def check_data(trained: LoadedModel, manifest: Manifest, folder: str) -> None:
    """Raise `InputError` unless the data set has the classes and the short side that the network was trained on."""
    theirs, ours = ([entry.id for entry in classes] for classes in (manifest.classes, trained.data.classes))
    if theirs != ours:
        pairs = enumerate(itertools.zip_longest(theirs, ours, fillvalue="none"))
        label, (found, expected) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
        raise InputError(
            f"{folder} has other classes ({len(theirs)}) than {trained.name} ({len(ours)}): "
            f"class {label} is {found}, not {expected}; build it with --classes and the shards of the training"
        )
    if manifest.short_side != trained.data.short_side:
        raise InputError(
            f"{folder} has a short side of {manifest.short_side} pixels, "
            f"{trained.name} is for {trained.data.short_side}"
        )


def check_split(option: str, manifest: Manifest, split: str, folder: str) -> None:
    """Raise `InputError` unless the data set has samples of the split that `option` names."""
    if not manifest.split(split).samples:
        others = ", ".join(name for name in manifest.splits if manifest.samples(name))
        raise InputError(f"{option} is {split}: {folder} has no samples of it; use {others}")


def check_single(ensemble: Ensemble) -> None:
    """Raise `InputError` for an ensemble: the features of its networks cannot be compared."""
    if len(ensemble.members) > 1:
        raise InputError(
            f"--retrieve-from cannot be combined with {len(ensemble.members)} networks; use it with each of them"
        )


def open_loader(trained: LoadedModel, data: str, split: str, batch_size: int, crops: int, staging: Staging) -> Loader:
    """Return a loader that gives a split as this network was trained to see it."""
    return make_loader(
        data,
        split,
        batch_size,
        mode="eval",
        device=str(trained.device),
        crop=trained.config.image_size,
        crops=crops,
        units=trained.config.units,
        mean=trained.config.mean,
        color_stats=trained.data.color_stats,
        mean_image=trained.mean_image,
        staging=staging,
    )


def find_nearest(trained: LoadedModel, data: str, options: argparse.Namespace, staging: Staging) -> Retrieval:
    """Return the nearest images of the split `--retrieve-from`; raise `InputError` where it has too few."""
    queries, images = (
        open_loader(trained, data, split, options.batch_size, 1, staging)
        for split in (options.split, options.retrieve_from)
    )
    return retrieve(trained, queries, images, options.retrieve_from)


def predict_all(
    ensemble: Ensemble, loaders: Sequence[Loader]
) -> tuple[Predictions, list[MemberResult], Comparison | None]:
    """Return the predictions for every sample of a split, in its order.

    Also return the accuracy of each network of several, and the comparison of two.

    `loaders` give the same split for each of the ensemble's `views`.
    """
    labels, losses, classes, probabilities, member_hits = [], [], [], [], []
    scores = torch.zeros(len(ensemble.members), 4, dtype=torch.float64, device=ensemble.members[0].device)
    batches = zip(*loaders, strict=True)
    for views in tqdm(batches, desc="evaluate", unit="batch", total=len(loaders[0]), disable=None):
        truth = views[0][1]
        member_logs = ensemble.log_probabilities([images for images, _ in views])
        scores += torch.stack([score(logs, truth) for logs in member_logs])
        member_hits.append(torch.stack([logs.argmax(1) == truth for logs in member_logs]))
        logs = average(member_logs)
        best = logs.topk(min(TOP_K, logs.shape[1]), dim=1)
        labels.append(truth)
        losses.append(torch.nn.functional.nll_loss(logs, truth, reduction="none"))
        classes.append(best.indices)
        probabilities.append(best.values.exp())
    predictions = Predictions(
        labels=torch.cat(labels).cpu().numpy(),
        top_classes=torch.cat(classes).cpu().numpy(),
        top_probabilities=torch.cat(probabilities).cpu().numpy(),
        losses=torch.cat(losses).cpu().numpy().astype(np.float64),
    )
    hits = torch.cat(member_hits, dim=1).cpu().numpy()
    return predictions, _member_results(ensemble, scores.tolist()), compare(*hits) if len(hits) == 2 else None


def _member_results(ensemble: Ensemble, scores: Sequence[Sequence[float]]) -> list[MemberResult]:
    if len(ensemble.members) == 1:
        return []
    has_top5 = len(ensemble.members[0].data.classes) >= TOP_K
    return [
        MemberResult(checkpoint=member.name, top1=top1 / samples, top5=top5 / samples if has_top5 else None)
        for member, (_, top1, top5, samples) in zip(ensemble.members, scores, strict=True)
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
