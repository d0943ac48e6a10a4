"""`python -m benchmarks.fed_step --data SHARDS`: the training of a recipe, fed by the loader and by its cache.

In one run, in turn: `training.loop.train.train_epoch` on one batch that stays on the device, on the loader's batches,
and on those of a loader that has its samples in the cache of the device. A recipe whose augmentation a cache refuses is
shown fixed windows of the central square there, and by the loader too in a row of its own. The time that ImageNet would
take is computed from the rate.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.options import positive_int
from command_line import CommandParser
from machine_limits import cpu_count
from pipeline.cache.memory import CacheKind
from pipeline.loader import Loader, make_loader
from training.cli import run_command
from training.config import Config
from training.loop.state import TrainState, build_state
from training.loop.train import train_epoch
from training.parallel.layout import Layout
from training.recipes import RECIPES

IMAGENET, EPOCHS = 1_281_167, 90
FILLING_EPOCHS = 8
"""Each leaves out less than a batch of samples, drawn for each epoch: none is left out of all of them."""
WARM_UP = 12
"""Steps before the first turn: they compile and choose algorithms."""

Batch = tuple[Tensor, Tensor]
RESIDENT, LOADER, FIXED, CACHE = "one resident batch", "loader", "loader, fixed windows", "device cache"


def main(arguments: Sequence[str]) -> None:
    """Measure each recipe, print its table, write --output."""
    parser = CommandParser(prog="python -m benchmarks.fed_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="shards of the recipes' short side")
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=["alexnet-2012", "alexnet-owt"], metavar="NAME")
    parser.add_argument("--compile", choices=("off", "auto", "on", "graphs"), help="(default: as the recipe)")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="(default: as the recipe)")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="turns of each kind (default: 5)")
    parser.add_argument(
        "--images", type=positive_int, default=20_000, metavar="N", help="in each turn (default: 20000)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="results as JSON")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = cpu_count()
    found: dict[str, dict[str, list[float]]] = {}
    for name in options.recipe:
        given = {"compile": options.compile, "batch_size": options.batch_size}
        config = replace(RECIPES[name](), data=options.data, **{key: value for key, value in given.items() if value})
        # Only speed is measured: on few images over and over it must not diverge.
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-4))
        found[name] = measure(config, device, threads, options.rounds, options.images)
        print(table(config, found[name]), flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(config: Config, device: torch.device, threads: int, rounds: int, images: int) -> dict[str, list[float]]:
    """Return images per second of each kind of feed, `rounds` times, kinds in turn."""
    state = build_state(config, Layout(device), threads)
    feeds = open_feeds(state, device, threads)
    steps = max(1, images // config.batch_size)
    for name, batches in feeds.items():
        print(f"warming up: {config.recipe}, {name}", file=sys.stderr)
        rate(state, batches, WARM_UP)
    rates: dict[str, list[float]] = {name: [] for name in feeds}
    for number in range(rounds):
        for name, batches in feeds.items():
            rates[name].append(rate(state, batches, steps))
            print(f"round {number}  {name}: {rates[name][-1]:.0f} images/s", file=sys.stderr)
    return rates


def open_feeds(state: TrainState, device: torch.device, threads: int) -> dict[str, Iterator[Batch]]:
    """Return endless batches of each kind; fill the cache, and say how long that took."""
    config = state.config
    fitting = replace(config.augmentation, crop_region="central-square", crop_size="fixed")

    def fixed(cache: CacheKind) -> Loader:
        return make_loader(
            config.data,
            "train",
            config.batch_size,
            device=device,
            crop=config.image_size,
            seed=config.seed,
            augmentation=fitting,
            units=config.units,
            mean=config.mean,
            cache=cache,
            num_threads=threads,
        )

    batches = endless(state.train_loader)
    feeds = {RESIDENT: itertools.repeat(next(batches)), LOADER: batches}
    if fitting != config.augmentation:
        feeds[FIXED] = endless(fixed("none"))
    return {**feeds, CACHE: endless(filled(fixed("device")))}


def filled(loader: Loader) -> Loader:
    """Let a loader with a cache decode all that it keeps, and print how long that took."""
    started = time.perf_counter()
    for _ in range(FILLING_EPOCHS):
        for _batch in loader:
            pass
    synchronize()
    print(f"cache filled in {time.perf_counter() - started:.1f} s, {FILLING_EPOCHS} passes", file=sys.stderr)
    return loader


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Give epoch after epoch."""
    while True:
        yield from batches


def rate(state: TrainState, batches: Iterator[Batch], steps: int) -> float:
    """Train on the next batches by the product's own loop; return images per second, until the device is done."""
    state.train_loader = itertools.islice(batches, steps)  # type: ignore[assignment]  # the loop wants to iterate
    synchronize()
    started = time.perf_counter()
    train_epoch(state, ignore, ignore)
    synchronize()
    return steps * state.config.batch_size / (time.perf_counter() - started)


def ignore(*_arguments: object) -> None:
    """Take metrics and checkpoints, and do nothing with them."""


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(config: Config, rates: dict[str, list[float]]) -> str:
    """Return medians and ranges, the share of the resident batch's rate (round by round), and the computed hours."""
    network = f"{config.recipe}, batches of {config.batch_size}, compile {config.compile}"
    lines = [f"| {network} | images/s | of the resident batch's | {EPOCHS} epochs of ImageNet | n |", "|---" * 5 + "|"]
    for name, measured in rates.items():
        shares = [one / base for one, base in zip(measured, rates[RESIDENT], strict=True)]
        median = statistics.median(measured)
        lines.append(
            f"| {name} | {median:.0f} ({min(measured):.0f}-{max(measured):.0f}) | {statistics.median(shares):.3f} "
            f"({min(shares):.3f}-{max(shares):.3f}) | {IMAGENET * EPOCHS / median / 3600:.2f} h | {len(measured)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
