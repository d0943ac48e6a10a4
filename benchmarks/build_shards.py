"""`python -m benchmarks.build_shards --input DIR`: this build, a script of the usual kind, and the floor, in one run.

All three work on the same JPEGs with the same number of processes, in turn, several times. The script
(`benchmarks/usual_build.py`) has plain Pillow and webdataset in an environment of its own, which is made in
`--cache` the first time. The floor is decoding, resizing and encoding in memory, and nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

from benchmarks.options import positive_int
from command_line import CommandParser
from errors import InputError
from machine_limits import cpu_count
from preprocess.build import build
from preprocess.images import decoding
from preprocess.images.transform import make_sample
from preprocess.plan import BuildOptions
from training.cli import run_command

SHORT_SIDE, QUALITY = 256, 95
CLASSES = 10
PEER_PACKAGES = ("pillow", "webdataset")
THIS, PEER = "this build", "script of the usual kind"
FLOORS = {"floor, pillow-simd": False, "floor, simplejpeg and pillow-simd": True}
"""Name of a floor -> whether simplejpeg decodes."""


class Cost(NamedTuple):
    """Time of one measurement."""

    seconds: float
    cpu_seconds: float


def main(arguments: Sequence[str]) -> None:
    """Measure, print a table and the ratios."""
    parser = CommandParser(prog="python -m benchmarks.build_shards", description=(__doc__ or "").split("\n")[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twotower" / "usual-build"
    parser.add_argument("--input", type=Path, required=True, help="folder of JPEGs, at any depth")
    parser.add_argument(
        "--images", type=positive_int, default=6000, help="how many to build; they are repeated (default: 6000)"
    )
    parser.add_argument("--workers", type=positive_int, default=cpu_count(), help="processes (default: all CPUs)")
    parser.add_argument(
        "--rounds", type=positive_int, default=5, help="interleaved measurements of each kind (default: 5)"
    )
    parser.add_argument("--cache", type=Path, default=cache, help=f"environment of the script (default: {cache})")
    options = parser.parse_args(arguments)
    files = find_images(options.input, options.images)
    costs = measure(files, peer_python(options.cache), options.workers, options.rounds)
    report(costs, len(files))


def find_images(folder: Path, count: int) -> list[Path]:
    """Return `count` JPEG files, those of `folder` over and over; `InputError` if there are none."""
    found = sorted(path.resolve() for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise InputError(f"--input {folder} holds no .jpg or .jpeg files")
    if count < CLASSES:
        raise InputError(f"--images is {count}; it must be at least {CLASSES}")
    return [found[number % len(found)] for number in range(count)]


def peer_python(cache: Path) -> Path:
    """Return the interpreter of an environment with `PEER_PACKAGES`, made now if it is not there."""
    python, done = cache / "bin" / "python", cache / "complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(cache)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEER_PACKAGES], check=True
        )
        done.touch()
    return python


def measure(files: list[Path], python: Path, workers: int, rounds: int) -> dict[str, list[Cost]]:
    """Return the costs of each kind of work, `rounds` times, kinds interleaved."""
    shard_samples = max(1, min(1000, len(files) // (4 * workers)))  # no process is to be idle for long
    kinds: dict[str, Callable[[Path], Cost]] = {
        THIS: partial(run_build, workers=workers, shard_samples=shard_samples),
        PEER: partial(run_peer, python=python, workers=workers, shard_samples=shard_samples, samples=len(files)),
    }
    for name, simplejpeg in FLOORS.items():
        if not simplejpeg or decoding.simplejpeg is not None:
            kinds[name] = partial(run_floor, files=files, workers=workers, simplejpeg=simplejpeg)
    costs: dict[str, list[Cost]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="twotower-benchmark-") as scratch:
        source = Path(scratch) / "images"
        link_images(files, source / "train")
        for number in range(rounds):
            for name, work in kinds.items():
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    (Path(folder) / "images").symlink_to(source)
                    costs[name].append(work(Path(folder)))
                print(f"round {number + 1}: {len(files) / costs[name][-1].seconds:.0f} images/s  {name}", flush=True)
    return costs


def link_images(files: list[Path], folder: Path, classes: int = CLASSES) -> None:
    """Fill class folders with links to the files."""
    for label in range(classes):
        (folder / f"class-{label}").mkdir(parents=True)
    for number, path in enumerate(files):
        (folder / f"class-{number % classes}" / f"{number:07d}.jpg").symlink_to(path)


def run_build(folder: Path, workers: int, shard_samples: int) -> Cost:
    """Build shards with everything that belongs to them, from the start of the workers to the manifest."""
    before = _cpu_seconds()
    started = time.perf_counter()
    options = BuildOptions(
        input=folder / "images",
        output=folder / "shards",
        short_side=SHORT_SIDE,
        quality=QUALITY,
        workers=workers,
        val_fraction=0.0,
        shard_samples=shard_samples,
    )
    build(options)
    return Cost(time.perf_counter() - started, _cpu_seconds() - before)


def run_peer(folder: Path, python: Path, workers: int, shard_samples: int, samples: int) -> Cost:
    """Run the script; it tells its own time, without that of its imports."""
    output = folder / "shards"
    output.mkdir()
    script = Path(__file__).with_name("usual_build.py")
    arguments = (python, script, folder / "images" / "train", output, workers, shard_samples)
    done = subprocess.run(list(map(str, arguments)), check=True, stdout=subprocess.PIPE, text=True)
    page = json.loads(done.stdout.splitlines()[-1])
    assert page["samples"] == samples
    return Cost(page["seconds"], page["cpu"])


def run_floor(_folder: Path, files: list[Path], workers: int, simplejpeg: bool) -> Cost:
    """Decode, resize and encode files that are in memory; from the moment that all processes have read theirs."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.SimpleQueue()
    processes = [
        context.Process(target=_work_in_memory, args=(files[worker::workers], simplejpeg, barrier, results))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    costs = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return Cost(max(cost.seconds for cost in costs), sum(cost.cpu_seconds for cost in costs))


def _work_in_memory(
    files: list[Path], simplejpeg: bool, barrier: Barrier, results: multiprocessing.SimpleQueue[Cost]
) -> None:
    if not simplejpeg:
        decoding.simplejpeg = None
    contents = {path: path.read_bytes() for path in files}
    barrier.wait()
    started, cpu = time.perf_counter(), time.process_time()
    for path in files:
        make_sample(contents[path], SHORT_SIDE, QUALITY)
    results.put(Cost(time.perf_counter() - started, time.process_time() - cpu))


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def report(costs: dict[str, list[Cost]], images: int) -> None:
    """Print images per second, of time and of CPU time, and the ratios that are wanted."""
    for name, measured in costs.items():
        rates = [images / cost.seconds for cost in measured]
        cpu = statistics.median(images / cost.cpu_seconds for cost in measured)
        spread = f"{min(rates):.0f}-{max(rates):.0f}"
        print(
            f"{statistics.median(rates):7.0f} images/s  {spread:11}  {cpu:5.0f} per CPU second  n={len(rates)}  {name}"
        )
    floor = min((name for name in costs if name in FLOORS), key=lambda name: _median_seconds(costs[name]))
    for name in (PEER, floor):
        for what, of in (("", lambda cost: cost.seconds), (" in CPU time", lambda cost: cost.cpu_seconds)):
            ratios = [of(other) / of(ours) for ours, other in zip(costs[THIS], costs[name], strict=True)]
            print(f"{statistics.median(ratios):7.2f} ({min(ratios):.2f}-{max(ratios):.2f})  {THIS} / {name}{what}")


def _median_seconds(costs: list[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


if __name__ == "__main__":
    sys.exit(run_command(main))
