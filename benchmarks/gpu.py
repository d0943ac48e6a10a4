"""`python -m benchmarks.gpu --output DIR`: all that is measured on a GPU, and its tests, in one call.

Needs torch, DALI, pytest and what reads and writes images, so that it runs on a GPU machine without Ray and MLflow.
Each part is a command of its own, which can be run without the others; one that fails does not keep the others from
running. There is no ImageNet on such a machine: images are repeated, and what is measured is speed.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.build_shards import find_images, link_images
from benchmarks.options import positive_int
from benchmarks.resume import link_shards
from command_line import CommandParser
from errors import InputError
from machine_limits import cpu_count
from preprocess.manifest import read_manifest
from training.cli import run_command

CLASSES = 1000
"""Each with an image in the one shard of the train split, and with one in val."""
GPU_TESTS = ("tests/training/test_gpu.py", "tests/pipeline")
"""Other tests of training import Ray and MLflow."""


def main(arguments: Sequence[str]) -> None:
    """Run the parts one after another, their output into this one's and --output; exit 1 if one failed."""
    parser = CommandParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the results of each part")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of JPEGs (default: the drawn sample)")
    parser.add_argument(
        "--shards", type=positive_int, default=6, metavar="N", help="of 1000 images, the same (default: 6)"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="turns of each kind (default: 5)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise InputError("torch finds no GPU")
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {cpu_count()} CPUs", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        data = make_shards(options.images, options.shards, Path(scratch))
        for name in options.parts:
            print(f"== {name}", flush=True)
            started = time.perf_counter()
            command = [sys.executable, "-m", *PARTS[name](str(data), str(options.output / name), str(options.rounds))]
            if subprocess.run(command).returncode:
                failed.append(name)
            print(f"== {name}: {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def make_shards(images: Path | None, count: int, folder: Path) -> Path:
    """Return a data set whose train split is one shard, `count` times."""
    command = [sys.executable, "-m", "preprocess.build_shards", "--output", str(folder / "built")]
    if images is not None:
        for split in ("train", "val"):
            link_images(find_images(images, CLASSES), folder / "images" / split, CLASSES)
        command += ["--input", str(folder / "images"), "--shard-samples", str(CLASSES)]
    subprocess.run(command, check=True)
    built, repeated = folder / "built", folder / "shards"
    repeated.mkdir()
    return link_shards(built, read_manifest(built), repeated, count)


def _tests(_data: str, output: str, _rounds: str) -> list[str]:
    # Most of their time is that of one core, which compiles.
    side_by_side = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    return ["pytest", "-q", "-m", "gpu", f"--junitxml={output}.xml", *side_by_side, *GPU_TESTS]


def _decoder(data: str, output: str, rounds: str) -> list[str]:
    return ["benchmarks.decoder", "--data", data, "--rounds", rounds, "--output", f"{output}.json"]


def _lrn(_data: str, _output: str, rounds: str) -> list[str]:
    first_layer = ["--shape", *map(str, (128, 96, 55, 55)), "--dtype", "bfloat16"]
    return ["benchmarks.lrn", "--device", "cuda", *first_layer, "--rounds", rounds]


def _train_step(_data: str, output: str, rounds: str) -> list[str]:
    return ["benchmarks.train_step", "--device", "cuda", "--rounds", rounds, "--output", f"{output}.json"]


def _fed_step(data: str, output: str, rounds: str) -> list[str]:
    return ["benchmarks.fed_step", "--data", data, "--rounds", rounds, "--output", f"{output}.json"]


PARTS: dict[str, Callable[[str, str, str], list[str]]] = {
    "fed_step": _fed_step,
    "train_step": _train_step,
    "decoder": _decoder,
    "lrn": _lrn,
    "tests": _tests,
}
"""By name, those first that are wanted most where time is short: the module and its arguments, from the data set, a
name for its results, and the rounds."""


if __name__ == "__main__":
    sys.exit(run_command(main))
