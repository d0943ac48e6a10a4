"""`python -m benchmarks.metrics [--data SHARDS]`: MLflow's points and the training's steps while its server is away.

First 10,000 points of one run: the server is killed with SIGKILL in their midst and started again later, and the
process that logs is killed twice and goes back to an earlier step, as to a checkpoint. Each has to be there once.

With SHARDS of a short side of 64 pixels, then the time of a training step that logs every step: to nobody, to a server,
and to the address of a server that is away; new processes, in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from benchmarks.mlflow_server import MlflowServer
from benchmarks.options import positive_int
from command_line import CommandParser
from training.cli import run_command
from training.loop.state import build_state
from training.loop.train import train
from training.parallel.layout import Layout
from training.recipes import RECIPES
from training.tracking import UNSETTLED, MetricLog, create_run, finish, open_client

KEYS = 8
"""Metrics of a step."""
BACK = 50
"""Steps that a killed process has logged after its last checkpoint."""
AWAY = "http://127.0.0.1:9"
"""An address where nobody listens."""
WARM_UP = 3
"""Steps whose time is not counted."""


def main(arguments: Sequence[str]) -> None:
    """Count the points, and measure; exit with 1 if a point is missing or doubled."""
    parser = CommandParser(prog="python -m benchmarks.metrics", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=positive_int, default=10_000, help="(default: 10000)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="shards with a short side of 64 pixels")
    parser.add_argument("--rounds", type=positive_int, default=5, help="trainings of each kind (default: 5)")
    parser.add_argument("--epochs", type=positive_int, default=2, help="of each training (default: 2)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        server = MlflowServer(Path(folder))
        try:
            server.start()
            wrong = count_points(server, Path(folder), options.points)
            print(f"{options.points} points over an outage and two killed processes: {wrong} missing or doubled")
            if options.data is not None:
                compare_steps(server, Path(folder), options.data, options.rounds, options.epochs)
        finally:
            server.kill()
    if wrong:
        raise SystemExit(1)


def count_points(server: MlflowServer, folder: Path, points: int) -> int:
    """Log `points` points through an outage and two deaths; return how many are missing or there twice."""
    run_id = create_run(open_client(server.uri), "benchmark", "points", {})
    open_client(server.uri).set_tag(run_id, UNSETTLED, str(folder / "runs"))
    steps = points // KEYS
    ends = (steps // 4, steps // 2, steps)
    arguments = (server.uri, run_id, str(folder / "runs"))
    alive = start_process(log_steps, *arguments, 0, ends[0] + BACK, True)
    time.sleep(1)  # it is logging
    server.kill()
    alive.join()
    start_process(log_steps, *arguments, ends[0], ends[1] + BACK, True).join()
    server.start()
    start_process(log_steps, *arguments, ends[1], ends[2], False).join()
    finish(open_client(server.uri), run_id, arguments[-1], "FINISHED")
    client = MlflowClient(server.store)
    wrong = 0
    for key in range(KEYS):
        found = Counter(point.step for point in client.get_metric_history(run_id, f"train/{key}"))
        wrong += sum(found[step] != 1 for step in {*range(steps), *found})
    return wrong


def log_steps(uri: str, run_id: str, storage: str, first: int, last: int, dies: bool) -> None:
    """Log steps as a training does: after its checkpoint some more points, and the end or SIGKILL."""
    log = MetricLog(uri, run_id, storage)
    for step in range(first, last):
        log.log({f"train/{key}": float(step) for key in range(KEYS)}, step)
        if step == last - BACK:
            log.flush()
        time.sleep(0.005)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    log.close()


def compare_steps(server: MlflowServer, folder: Path, data: Path, rounds: int, epochs: int) -> None:
    """Print the mean time of a training step by where it logs to."""
    client = open_client(server.uri)
    uris = {"to nobody": None, "to a server": server.uri, "to a server that is away": AWAY}
    seconds: dict[str, list[float]] = {kind: [] for kind in uris}
    for number in range(rounds):
        for kind, uri in uris.items():
            run_id = create_run(client, "benchmark", kind, {})
            results = multiprocessing.get_context("spawn").SimpleQueue()
            storage = str(folder / str(number))
            process = start_process(time_steps, str(data.resolve()), epochs, uri, run_id, storage, results)
            process.join()
            if process.exitcode:
                raise SystemExit(1)
            seconds[kind].append(results.get())
    base = statistics.median(seconds["to nobody"])
    for kind, found in seconds.items():
        low, middle, high = (f"{1000 * part(found):.2f}" for part in (min, statistics.median, max))
        ratio = statistics.median(found) / base
        print(f"step that logs {kind}: {middle} ms (median of {rounds}, {low} to {high}), {ratio:.3f} times")


def time_steps(data: str, epochs: int, uri: str | None, run_id: str, storage: str, results: Any) -> None:
    """Train one process of `tiny-imagenet`, log every step, and put the mean seconds of a step into `results`."""
    torch.set_num_threads(1)
    base = RECIPES["tiny-imagenet"]()
    optimizer = replace(base.optimizer, learning_rate=1e-3)  # that of the recipe is for larger batches
    config = replace(
        base, data=data, epochs=epochs, batch_size=8, log_every=1, precision="float32", optimizer=optimizer
    )
    log: Callable[[dict[str, float], int], None] = lambda _metrics, _step: None  # noqa: E731
    if uri is not None:
        log = MetricLog(uri, run_id, storage).log
    times: list[float] = []

    def log_and_time(metrics: dict[str, float], step: int) -> None:
        log(metrics, step)
        times.append(time.perf_counter())

    train(build_state(config, Layout(torch.device("cpu")), 1), log_and_time, lambda _state, _metrics: None)
    results.put((times[-1] - times[WARM_UP]) / (len(times) - WARM_UP - 1))


def start_process(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Start a new Python process that calls `target`."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


if __name__ == "__main__":
    sys.exit(run_command(main))
