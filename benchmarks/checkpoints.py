"""`python -m benchmarks.checkpoints --data SHARDS [--recipe NAME]`: what checkpoints and resuming cost.

Steps: blocks of `--every` steps of one training, in turn with a checkpoint in each block and without. The checkpoint is
taken, digested and written as in a training, by the same thread, while the steps of the next block run; a block is
followed by another one of its kind before it is measured, so that each pays for one checkpoint as a whole.

Start: the command of one epoch, fresh, and that of one more epoch of a run with `--resume`, in turn.
"""

from __future__ import annotations

import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.options import positive_int
from command_line import CommandParser
from training.cli import run_command
from training.config import Config
from training.launch.store import BackgroundWriter, CheckpointStore
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.step import train_step
from training.parallel.layout import Layout
from training.recipes import RECIPES


def main(arguments: Sequence[str]) -> None:
    """Measure what is asked for, and print medians and ratios."""
    parser = CommandParser(prog="python -m benchmarks.checkpoints", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("steps", "start"))
    parser.add_argument("--data", required=True, metavar="DIR", help="shards of the recipe's short side")
    parser.add_argument("--recipe", choices=RECIPES, default="alexnet-paper", help="(default: alexnet-paper)")
    parser.add_argument("--batch-size", type=positive_int, default=128, metavar="N", help="(default: 128)")
    parser.add_argument("--every", type=positive_int, default=20, metavar="N", help="steps of a block (default: 20)")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="of each kind (default: 5)")
    parser.add_argument("--threads", type=positive_int, default=2, metavar="N", help="of torch (default: 2)")
    options = parser.parse_args(arguments)
    data = str(Path(options.data).resolve())
    if options.part == "start":
        pairs = measure_starts(options.recipe, data, options.rounds)
        report("command of one epoch, fresh", "resumed", pairs)
        return
    config = dataclasses.replace(RECIPES[options.recipe](), data=data, batch_size=options.batch_size)
    pairs = measure_steps(config, options.every, options.rounds, options.threads)
    report(f"{options.every} steps", "with a checkpoint", pairs)


def measure_steps(config: Config, every: int, rounds: int, threads: int) -> list[tuple[float, float]]:
    """Return seconds of `every` steps without and with a checkpoint, in pairs."""
    torch.set_num_threads(threads)
    state = build_state(config, Layout(torch.device("cuda" if torch.cuda.is_available() else "cpu")), threads)
    images, labels = next(iter(state.train_loader))
    with tempfile.TemporaryDirectory() as folder:
        writer = BackgroundWriter(CheckpointStore(folder, "run"), 2, lambda: None, lambda _last, _best: None)
        run_block(state, images, labels, every)
        pairs = []
        for number in range(rounds):
            seconds = {}
            for saves in (False, True) if number % 2 == 0 else (True, False):
                # The first of two blocks leaves its checkpoint to the second, which leaves one to nobody.
                for _ in range(2):
                    began = time.perf_counter()
                    if saves:
                        writer.write(capture_checkpoint(state, "run", {}))
                    run_block(state, images, labels, every)
                    seconds[saves] = time.perf_counter() - began
                writer.wait()
            pairs.append((seconds[False], seconds[True]))
            print(f"round {number}: {pairs[-1][0]:.2f} s without, {pairs[-1][1]:.2f} s with", file=sys.stderr)
    return pairs


def run_block(state: TrainState, images: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Take some optimizer steps on one batch, and wait for the last."""
    state.ddp_network.train()
    config = state.config
    for _ in range(steps):
        loss = train_step(
            state.ddp_network,
            state.optimizer,
            images,
            labels,
            state.autocast,
            config.label_smoothing,
            config.micro_batches,
            state.mean_loss,
        )
        state.step += 1
    loss.item()


def measure_starts(recipe: str, data: str, rounds: int) -> list[tuple[float, float]]:
    """Return seconds of the command for a first epoch, and for one more epoch of an earlier run, in pairs."""
    with tempfile.TemporaryDirectory() as folder:
        first = ["--data", data, "--storage", f"{folder}/runs", "--parallel.data", "2", "--epochs"]
        _, run = timed_command(folder, [recipe, *first, "1"])
        pairs = []
        for number in range(rounds):
            fresh = (folder, [recipe, *first, "1"])
            more = (folder, ["--resume", run, "--epochs", str(number + 2)])
            order = (fresh, more) if number % 2 == 0 else (more, fresh)
            seconds = [timed_command(*command)[0] for command in order]
            pairs.append((seconds[0], seconds[1]) if number % 2 == 0 else (seconds[1], seconds[0]))
            print(f"round {number}: {pairs[-1][0]:.1f} s fresh, {pairs[-1][1]:.1f} s resumed", file=sys.stderr)
    return pairs


def timed_command(folder: str, arguments: Sequence[str]) -> tuple[float, str]:
    """Return seconds of a training's command, and the id of its run."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    began = time.perf_counter()
    command = [sys.executable, "-m", "training.run", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    run = re.search(r"run (\w{32})", done.stdout)
    if done.returncode or run is None:
        raise RuntimeError(f"the training ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return seconds, run[1]


def report(one: str, other: str, pairs: Sequence[tuple[float, float]]) -> None:
    """Print the medians of both kinds, and of the ratios of the pairs."""
    for name, seconds in zip((one, other), zip(*pairs, strict=True), strict=True):
        print(f"{statistics.median(seconds):8.2f} s  {min(seconds):.2f}-{max(seconds):.2f}  n={len(seconds)}  {name}")
    ratios = [second / first for first, second in pairs]
    print(f"{statistics.median(ratios):8.3f}    {min(ratios):.3f}-{max(ratios):.3f}  {other} / {one}")


if __name__ == "__main__":
    sys.exit(run_command(main))
