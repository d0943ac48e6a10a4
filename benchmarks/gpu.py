"""`python -m benchmarks.gpu --output DIR`: GPU tests, loader and training speed, all in one call.

Needs torch, DALI and pytest alone, so that it runs on a GPU machine without Ray and MLflow. Images are drawn and
repeated (there is no ImageNet on such a machine): what is measured is speed, on files of ImageNet's size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.train_step import any_failed, measure_networks
from pipeline.loader import make_loader
from training.models import build
from training.precision import autocast
from training.step import train_step

CLASSES = 1000
WARM_UP, STEPS = 10, 40
Batch = tuple[Tensor, Tensor]


def main() -> int:
    """Run everything, write results.json into --output, print a table; return 1 if a test failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of shards of short side 256 (default: the drawn sample)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved measurements of each kind (default: 5)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # Other tests of training import Ray and MLflow.
    where = ("tests/training/test_gpu.py", "tests/pipeline")
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *where])
    data = options.data or _draw_shards(options.output)
    rates = measure(data, options.rounds)
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tests_exit_code": tests.returncode,
        "images_per_second": rates,
    }
    page = options.output / "results.json"
    page.write_text(json.dumps(results, indent=1) + "\n")  # what is measured is kept, whatever comes next
    for name, measured in rates.items():
        spread = f"{min(measured):.0f}-{max(measured):.0f}"
        print(f"{statistics.median(measured):9.0f} images/s  {spread}  n={len(measured)}  {name}")
    steps = measure_networks(torch.device("cuda"), rounds=options.rounds)
    page.write_text(json.dumps({**results, "train_step": steps}, indent=1) + "\n")
    return int(tests.returncode != 0 or any_failed(steps))


def _draw_shards(folder: Path) -> Path:
    shards = folder / "shards"
    subprocess.run([sys.executable, "-m", "preprocess.build_shards", "--output", str(shards)], check=True)
    return shards


def measure(data: Path, rounds: int) -> dict[str, list[float]]:
    """Return images per second of each kind of work, `rounds` times, kinds interleaved."""
    batch_size = 256
    loader = make_loader(data, "train", batch_size, device="cuda")
    batches = endless(loader)
    resident = next(batches)
    cached = filled_cache(data, batch_size)
    kinds: dict[str, Callable[[], None]] = {"loader alone": lambda: drop(next(batches))}
    kinds["device cache alone, filled"] = lambda: drop(next(cached))
    for precision in ("float32", "bfloat16"):
        step = make_step(precision)
        kinds[f"alexnet {precision}, one resident batch"] = partial(step, itertools.repeat(resident))
        kinds[f"alexnet {precision}, fed by the loader"] = partial(step, batches)
        kinds[f"alexnet {precision}, fed by the device cache"] = partial(step, cached)
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, work in kinds.items():
            rates[name].append(batch_size * rate(work))
    return rates


def filled_cache(data: Path, batch_size: int) -> Iterator[Batch]:
    """Return the batches of a loader with a cache on the GPU, from its second epoch on."""
    loader = make_loader(data, "train", batch_size, device="cuda", cache="device")
    for batch in loader:
        drop(batch)
    return endless(loader)


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Give epoch after epoch."""
    while True:
        yield from batches


def drop(_batch: Batch) -> None:
    """Forget a batch: its memory is free once the stream has passed it."""


def make_step(precision: str) -> Callable[[Iterator[Batch]], None]:
    """Return a training step of the full two-tower network on the GPU, on the next of some batches."""
    assert precision in ("float32", "bfloat16")
    network = build("alexnet", CLASSES).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    context = autocast("bfloat16" if precision == "bfloat16" else "float32", torch.device("cuda"))

    def step(batches: Iterator[Batch]) -> None:
        train_step(network, optimizer, *next(batches), context)

    return step


def rate(work: Callable[[], None]) -> float:
    """Return calls per second, after a warm-up, until the GPU is done."""
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    torch.cuda.synchronize()
    return STEPS / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
