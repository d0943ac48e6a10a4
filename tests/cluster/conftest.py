"""The training that others are compared with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import run_command
from hosts import MACHINE_SETTINGS
from trainings import Outcome, outcome, training


@pytest.fixture(scope="session")
def on_one_host(four_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same training with two workers on a Ray of its own, undisturbed."""
    folder = tmp_path_factory.mktemp("one-host")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {**MACHINE_SETTINGS, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    workers = ("--parallel.data", 2, "--parallel.cpus-per-worker", 1)
    done = run_command(*training(four_classes, folder, *workers), env=environment)
    assert done.returncode == 0, done.stderr
    return outcome(done.stdout, folder)
