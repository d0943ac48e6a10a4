"""`python -m benchmarks.ablations --data SHARDS`: what the parts of the network of 2012 are worth on a small data set.

Each variant changes one switch of the base network and trains it with the recipe for the shards' short side, by the
loop of `training.loop.train`,
once for each seed: a table of top-1 on the val split, whatever it says. Runs are short, so
it compares how fast variants learn, not where they would end.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import positive_int
from command_line import CommandParser
from errors import InputError
from preprocess.manifest import read_manifest
from training.cli import run_command
from training.config import Config
from training.loop.state import TrainState, build_state
from training.loop.train import train
from training.parallel.layout import Layout
from training.recipes import RECIPES

BASE: dict[str, Any] = {"lrn": "paper", "pooling": "overlapping", "activation": "relu", "dropout": 0.5}
"""The switches of the network that every variant but its own differs from in nothing."""
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "without LRN": {"lrn": "off"},
    "pooling not overlapping": {"pooling": "disjoint"},
    "tanh": {"activation": "tanh"},
    "without dropout": {"dropout": 0.0},
}
RECIPES_BY_SIDE = {32: "cifar10", 64: "tiny-imagenet"}


def main(arguments: Sequence[str]) -> None:
    """Train every variant with every seed, seeds in the outer loop; print the table, write --output."""
    parser = CommandParser(prog="python -m benchmarks.ablations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="shards of short side 32 or 64")
    parser.add_argument(
        "--seeds", type=positive_int, default=3, metavar="N", help="trainings of each variant (default: 3)"
    )
    parser.add_argument("--epochs", type=positive_int, default=3, metavar="N", help="of each training (default: 3)")
    parser.add_argument("--threads", type=positive_int, default=2, metavar="N", help="CPU threads (default: 2)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results as JSON")
    options = parser.parse_args(arguments)
    base = _base(options.data, options.epochs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    for seed in range(options.seeds):
        for name in options.variants:
            network = dataclasses.replace(base.network, **VARIANTS[name])
            config = dataclasses.replace(base, seed=seed, network=network)
            results[name].append(run(config, Layout(device), options.threads))
            last = results[name][-1]
            print(f"seed {seed}  {name}: top-1 {last['top1']:.4f} in {last['seconds']:.0f} s", file=sys.stderr)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def _base(data: str, epochs: int) -> Config:
    side = read_manifest(data).short_side
    if side not in RECIPES_BY_SIDE:
        raise InputError(f"{data} has a short side of {side} pixels; valid here are 32 and 64")
    recipe = RECIPES[RECIPES_BY_SIDE[side]]()
    network = dataclasses.replace(recipe.network, **BASE)
    return dataclasses.replace(recipe, data=data, epochs=epochs, network=network)


def run(config: Config, layout: Layout, threads: int) -> dict[str, float]:
    """Train once; return the last val/top1, the last training loss, and the seconds that it took."""
    started, seen = time.perf_counter(), {}

    def log(metrics: dict[str, float], _step: int) -> None:
        seen.update(metrics)

    def save(_state: TrainState, _metrics: dict[str, float]) -> None:
        """Keep nothing."""

    train(build_state(config, layout, threads), log, save)
    return {
        "top1": seen["val/top1"],
        "train_loss": seen["train/loss"],
        "seconds": time.perf_counter() - started,
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return mean and spread of each variant, and its mean difference from the first one with the same seed."""
    first = next(iter(results.values()))
    lines = ["| variant | n | top-1, mean | lowest to highest | against the first | longest run, s |", "|---" * 6 + "|"]
    for name, runs in results.items():
        top1 = [run["top1"] for run in runs]
        gain = statistics.mean(run["top1"] - other["top1"] for run, other in zip(runs, first, strict=True))
        longest = max(run["seconds"] for run in runs)
        lines.append(
            f"| {name} | {len(runs)} | {statistics.mean(top1):.4f} | {min(top1):.4f} to {max(top1):.4f} "
            f"| {gain:+.4f} | {longest:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
