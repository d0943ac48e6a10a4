"""`python -m training.evaluate (--run ID ... | --checkpoint PATH ... | --weights FILE --recipe NAME) --data DIR`:
accuracy on a split, and a report.

Writes report.json and report.html, and puts them into the MLflow runs that it was asked for. Of several networks, the
probabilities are averaged. `--compare RUN_A RUN_B` writes comparison.json and comparison.html instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import CommandParser
from errors import InputError
from pipeline.reading.staging import Staging
from preprocess.manifest import manifest_digest, read_manifest
from training.class_names import name_classes
from training.cli import resolve, run_command
from training.comparison import finish_comparison, pair_sha256
from training.ensemble import Ensemble
from training.evaluation import Evaluation
from training.inference import check_data, check_split, open_loader, open_loaders, predict_split
from training.load_model import (
    LoadedModel,
    add_device_argument,
    add_model_arguments,
    add_staging_arguments,
    load_models,
    make_dense,
)
from training.report.comparison import COMPARISON_NAME
from training.report.folder import REPORT_NAME
from training.report.metrics import Evaluated
from training.report.output import check_replaceable, prepare_folder
from training.report.retrieval import Retrieval
from training.reporting import finish_report
from training.retrieval import retrieve


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; exits with code 2 where it makes no sense."""
    parser = CommandParser(prog="python -m training.evaluate", description="Measure a network, or several, on a split.")
    networks = add_model_arguments(parser, several=True)
    networks.add_argument(
        "--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="two MLflow runs side by side, with McNemar's test"
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
    options.run = options.run or options.compare
    if options.dense and options.crops != 1:
        raise InputError(f"--crops is {options.crops}: --dense sees the complete square; use 1")
    if options.retrieve_from is not None and (options.dense or options.retrieve_from == options.split):
        problem = "--dense has no single features" if options.dense else "the images would find themselves"
        raise InputError(f"--retrieve-from is {options.retrieve_from}: {problem}; use another split, without --dense")
    return options


def main(arguments: Sequence[str]) -> None:
    """Evaluate, write the report or the comparison, log it into the runs, and say where it is."""
    options, project = parse(arguments), Path.cwd()
    evaluation = prepare(options, project)
    staging = Staging(options.staging, options.staging_bytes)
    loaders = open_loaders(
        evaluation.ensemble, evaluation.data, options.split, options.batch_size, options.crops, staging
    )
    started = time.perf_counter()
    predictions = predict_split(evaluation.ensemble, loaders)
    seconds = time.perf_counter() - started
    if options.compare:
        finish_comparison(evaluation, predictions, loaders[0].example, project)
    else:
        retrieval = None
        if options.retrieve_from is not None:
            retrieval = find_nearest(evaluation.ensemble.members[0], evaluation.data, options, staging)
        finish_report(evaluation, predictions, seconds, retrieval, loaders[0].example, project)


def prepare(options: argparse.Namespace, project: Path) -> Evaluation:
    """Load the networks and check all that can be checked before they are evaluated.

    Raises:
        InputError: networks, data and options do not fit together, or the output folder cannot be used.
    """
    data = resolve("--data", options.data, project, must_exist=True)
    ensemble = Ensemble(load_models(options, project, data))
    manifest = read_manifest(data)
    for trained in ensemble.members:
        check_data(trained, manifest, data)
    check_split("--split", manifest, options.split, data)
    if options.retrieve_from is not None:
        check_split("--retrieve-from", manifest, options.retrieve_from, data)
        check_single(ensemble)
    weights_sha256 = pair_sha256(ensemble) if options.compare else ensemble.weights_sha256
    evaluated = Evaluated(
        split=options.split,
        crops=options.crops,
        view="dense" if options.dense else f"{options.crops}{'crop' if options.crops == 1 else 'crops'}",
        weights_sha256=weights_sha256,
        manifest_sha256=manifest_digest(data),
    )
    name = report_name(f"comparison-{weights_sha256[:8]}" if options.compare else ensemble.label, ensemble, evaluated)
    folder = prepare_folder(resolve("--output", options.output or Path("reports", name), project))
    if not options.overwrite:
        check_replaceable(folder, evaluated, COMPARISON_NAME if options.compare else REPORT_NAME)
    if options.dense:
        ensemble = Ensemble(tuple(make_dense(trained) for trained in ensemble.members))
    classes = name_classes(manifest.classes, options.class_names)
    return Evaluation(ensemble, data, manifest, classes, evaluated, name, folder)


def report_name(label: str, ensemble: Ensemble, evaluated: Evaluated) -> str:
    """Return a name for the results of an evaluation: `label`, which names the networks, the split and the view.

    On other data than that of the training, it ends in the first digits of the manifest's SHA-256.
    """
    name = f"{label}-{evaluated['split']}-{evaluated['view']}"
    digest = evaluated["manifest_sha256"]
    same = all(trained.data.manifest_sha256 == digest for trained in ensemble.members)
    return name if same else f"{name}-{digest[:8]}"


def check_single(ensemble: Ensemble) -> None:
    """Raise `InputError` for an ensemble: the features of its networks cannot be compared."""
    if len(ensemble.members) > 1:
        raise InputError(
            f"--retrieve-from cannot be combined with {len(ensemble.members)} networks; use it with each of them"
        )


def find_nearest(trained: LoadedModel, data: str, options: argparse.Namespace, staging: Staging) -> Retrieval:
    """Return the nearest images of the split `--retrieve-from`; raise `InputError` where it has too few."""
    queries, images = (
        open_loader(trained, data, split, options.batch_size, 1, staging)
        for split in (options.split, options.retrieve_from)
    )
    return retrieve(trained, queries, images, options.retrieve_from)


if __name__ == "__main__":
    sys.exit(run_command(main))
