"""`python -m training.submit (--run ID ... | --checkpoint PATH ...) --images DIR --output FILE`: predictions for images
without labels, as the test server of ILSVRC-2012 takes them.

A line for each image, in the order of the file names: the ILSVRC2012_IDs of the five most probable classes, the most
probable first (readme of the development kit, "Submission of results"). The probabilities of several networks are
averaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from atomic_files import atomic_write
from command_line import CommandParser
from errors import InputError, check_count
from machine_limits import cpu_count
from training.class_names import challenge_ids
from training.cli import resolve, run_command
from training.ensemble import Ensemble, average
from training.load_model import add_device_argument, add_model_arguments, load_models
from training.loop.step import TOP_K
from training.predict import make_input, read_sample


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; raise `InputError` where it makes no sense."""
    parser = CommandParser(prog="python -m training.submit", description="Predict the classes of a test split.")
    add_model_arguments(parser, several=True)
    add_device_argument(parser)
    parser.add_argument("--data", metavar="DIR", help="with --weights: shards with the same classes")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="the image files of the test split")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="replaced if it exists")
    parser.add_argument("--crops", type=int, choices=(1, 10), default=1, help="1: the centre; 10: as in 2012")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images (default: 128)")
    options = parser.parse_args(arguments)
    check_count("--batch-size", options.batch_size, 1)
    return options


def main(arguments: Sequence[str]) -> None:
    """Write the file, complete or not at all, and say so."""
    options, project = parse(arguments), Path.cwd()
    output = Path(resolve("--output", options.output, project))
    if not output.parent.is_dir() or output.is_dir():
        raise InputError(f"--output is {output}: it is a folder, or in none; use the name of a file in a folder")
    paths = list_images(Path(resolve("--images", options.images, project, must_exist=True)))
    ensemble = Ensemble(load_models(options, project, options.data))
    ids = challenge_ids(ensemble.members[0].data.classes)
    lines: list[str] = []
    with (
        ThreadPoolExecutor(cpu_count()) as threads,
        tqdm(total=len(paths), desc="submit", unit="image", disable=None) as progress,
    ):
        for start in range(0, len(paths), options.batch_size):
            batch = paths[start : start + options.batch_size]
            best = predict_batch(ensemble, batch, options.crops, threads).topk(min(TOP_K, len(ids)), dim=1)
            lines += [" ".join(str(ids[label]) for label in labels) for labels in best.indices.tolist()]
            progress.update(len(batch))
    try:
        atomic_write(output, "".join(f"{line}\n" for line in lines).encode("ascii"))
    except OSError as error:
        raise InputError(f"--output is {output}: it cannot be written: {error.strerror}; use another place") from error
    print(f"{output}: {len(lines)} images, {min(TOP_K, len(ids))} classes a line, by {ensemble.name}")


def list_images(folder: Path) -> list[Path]:
    """Return the files of a folder in the order of their names; raise `InputError` if there are none, or folders too.

    Hidden files do not count.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"--images is {folder}: it cannot be read: {error.strerror}; use a folder of images"
        ) from error
    if not entries:
        raise InputError(f"--images is {folder}: it is empty; use a folder of images")
    for entry in entries:
        if entry.is_dir():
            raise InputError(
                f"--images is {folder}: it holds the folder {entry.name}; use the folder with the images themselves"
            )
    return entries


def predict_batch(ensemble: Ensemble, paths: Sequence[Path], crops: int, threads: ThreadPoolExecutor) -> Tensor:
    """Return the ensemble's log-probabilities (N, classes) for image files.

    Raises:
        InputError: one of them cannot be used.
    """
    inputs = []
    for trained in ensemble.views.values():
        samples = list(threads.map(partial(read_sample, trained=trained), paths))
        inputs.append(make_input(trained, samples, crops))
    return average(ensemble.log_probabilities(inputs))


if __name__ == "__main__":
    sys.exit(run_command(main))
