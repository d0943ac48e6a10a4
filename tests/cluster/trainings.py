"""A small training by its command, on several hosts as on one, and what it leaves."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from training.checkpoint import MODEL, read_model
from training.launch.store import CheckpointStore
from training.tracking import open_client

EPOCHS, STEPS_PER_EPOCH = 4, 35
FIELDS = (
    *("--epochs", EPOCHS, "--batch-size", 4, "--device", "cpu", "--precision", "float32"),
    *("--checkpoint.every-steps", 5, "--log-every", 1),
    # The number of workers decides on the masks of dropout, and on rounding, whose effect grows with each step.
    *("--network.dropout", 0, "--network.init", "torch", "--optimizer.schedule", "constant"),
    *("--optimizer.learning-rate", 2e-4, "--optimizer.warmup-epochs", 0),
)
ACROSS = ("--parallel.data", 2, "--parallel.cpus-per-worker", 2)
"""A worker takes all cores of a host: two are on two hosts."""


@dataclass
class Outcome:
    """A training that has ended."""

    run_id: str
    log: str
    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    """`train/loss` by step."""
    images_per_second: float


def outcome(log: str, folder: Path) -> Outcome:
    """Read what a training has left in `runs/` and `mlflow.db` of a folder."""
    found = re.search(r"^MLflow run ([0-9a-f]{32})", log, re.MULTILINE)
    assert found, log
    store = CheckpointStore(str(folder / "runs"), found[1])
    step = store.newest()
    assert step == EPOCHS * STEPS_PER_EPOCH, log
    with store.fetch(step) as checkpoint:
        weights = read_model(checkpoint / MODEL)
    client = open_client(f"sqlite:///{folder}/mlflow.db")
    assert client.get_run(found[1]).info.status == "FINISHED"
    losses = client.get_metric_history(found[1], "train/loss")
    assert [point.step for point in losses] == list(range(1, step + 1)), "each step once, in order"
    rates = [point.value for point in client.get_metric_history(found[1], "train/images_per_second")]
    by_step = {point.step: point.value for point in losses}
    return Outcome(found[1], log, weights, by_step, statistics.median(rates))


def assert_same(one: Outcome, other: Outcome) -> None:
    assert max(float((one.weights[name] - other.weights[name]).abs().max()) for name in other.weights) < 1e-6
    # A sample that is left out or comes twice changes the mean over four in its first digit.
    assert one.losses == pytest.approx(other.losses, abs=1e-5)


def training(data: Path, folder: Path, *fields: object) -> tuple[object, ...]:
    return ("training.run", "tiny-imagenet", "--data", data, "--storage", folder / "runs", *FIELDS, *fields)
