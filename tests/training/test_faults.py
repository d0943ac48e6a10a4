"""A small form of `benchmarks.faults`: faults that end a node, a checkpoint and a server."""

from pathlib import Path

import pytest
from commands import run_command

FAULTS = ("raylet killed", "newest checkpoint truncated", "MLflow server down for 10 s")
FIELDS = ("--epochs", 6, "--batch-size", 4, "--checkpoint.every-steps", 10, "--optimizer.learning-rate", 0.002)


@pytest.mark.slow
def test_trainings_that_meet_a_fault_end_like_the_undisturbed_one(four_classes: Path) -> None:
    command = ("benchmarks.faults", "--data", four_classes, "--runs", len(FAULTS), "--seed", 1, "--faults", *FAULTS)
    done = run_command(*command, "--", *FIELDS, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "3 of 3 as the undisturbed training"
