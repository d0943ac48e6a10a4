"""`python -m benchmarks.orchestration --data SHARDS [--recipe NAME]`: what Ray Train and MLflow cost a training step.

In one run, interleaved: the recipe by `training.run` with one worker (Ray Train, MLflow, metrics, progress), and the
same loader, network and step in a bare loop, in a fresh process with the same threads and memory settings. Both are
read over windows of `log_every` steps, the first window left out; start-up, validation and checkpoints are in neither.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import positive_int
from command_line import CommandParser
from errors import InputError
from preprocess.manifest import read_manifest
from training.cli import run_command
from training.config import Config
from training.recipes import RECIPES


def main(arguments: Sequence[str]) -> None:
    """Measure both kinds in turn, --rounds times, and print images per second and the ratio of the medians."""
    parser = CommandParser(prog="python -m benchmarks.orchestration", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="shards of the recipe's short side")
    parser.add_argument("--recipe", choices=RECIPES, default="tiny-imagenet", help="(default: tiny-imagenet)")
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="measurements of each kind (default: 5)"
    )
    parser.add_argument("--epochs", type=positive_int, default=1, metavar="N", help="of each measurement (default: 1)")
    parser.add_argument("--threads", type=positive_int, default=2, metavar="N", help="of the one worker (default: 2)")
    options = parser.parse_args(arguments)
    data = Path(options.data).resolve()
    config = dataclasses.replace(RECIPES[options.recipe](), data=str(data), epochs=options.epochs)
    steps = read_manifest(data).split("train").samples // config.batch_size
    if steps < 2 * config.log_every:
        raise InputError(f"{data} gives {steps} steps an epoch; two windows of {config.log_every} are needed")
    rates: dict[str, list[float]] = {"bare loop": [], "orchestrated": []}
    for number in range(options.rounds):
        kinds = [("bare loop", bare_in_a_process), ("orchestrated", orchestrated)]
        for name, measure in kinds if number % 2 == 0 else reversed(kinds):
            rates[name].append(measure(config, options.threads))
            print(f"round {number}  {name}: {rates[name][-1]:.1f} images/s", file=sys.stderr)
    for name, measured in rates.items():
        spread = f"{min(measured):.1f}-{max(measured):.1f}"
        print(f"{statistics.median(measured):9.1f} images/s  {spread}  n={len(measured)}  {name}")
    ratio = statistics.median(rates["orchestrated"]) / statistics.median(rates["bare loop"])
    print(f"orchestrated / bare {ratio:.3f}")


def bare_in_a_process(config: Config, threads: int) -> float:
    """Return images per second of `bare` in a process that starts as a worker of Ray Train does."""
    from training.launch.ray_environment import RAY_TRAIN_SETTINGS, WORKER_SETTINGS

    kept = dict(os.environ)
    os.environ.update(RAY_TRAIN_SETTINGS | WORKER_SETTINGS, OMP_NUM_THREADS=str(threads))
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(bare, (config, threads))
    finally:
        os.environ.clear()
        os.environ.update(kept)


def bare(config: Config, threads: int) -> float:
    """Train in a loop of nothing but loader and step; return images per second over all windows but the first."""
    import torch

    from training.loop.state import build_state
    from training.loop.step import train_step
    from training.parallel.layout import Layout

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = build_state(config, Layout(device), threads)
    windows = []
    for _ in range(config.epochs):
        state.network.train()
        since = time.perf_counter()
        for step, (images, labels) in enumerate(state.train_loader, start=1):
            loss = train_step(
                state.network,
                state.optimizer,
                images,
                labels,
                state.autocast,
                config.label_smoothing,
                config.micro_batches,
                state.mean_loss,
            )
            state.schedule.after_step()
            if step % config.log_every == 0:
                loss.item()  # waits for the device, as reading a curve does
                now = time.perf_counter()
                windows.append(now - since)
                since = now
    return config.batch_size * config.log_every * (len(windows) - 1) / sum(windows[1:])


def orchestrated(config: Config, threads: int) -> float:
    """Run the training's command on a Ray and an MLflow store of its own; return the same from its curve."""
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        command = [sys.executable, "-m", "training.run", config.recipe, "--data", config.data]
        command += ["--epochs", str(config.epochs), "--storage", f"{folder}/runs", "--max-failures", "0"]
        command += ["--parallel.data", "1", "--parallel.cpus-per-worker", str(threads)]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        run = re.search(r"^run (\w+)$", done.stdout, re.MULTILINE)
        if done.returncode or run is None:
            raise RuntimeError(f"the training ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        curve = MlflowClient(uri).get_metric_history(run[1], "train/images_per_second")
    windows = [1 / point.value for point in sorted(curve, key=lambda point: point.step)]
    return (len(windows) - 1) / sum(windows[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
