"""`deploy/slurm/` on a real Slurm of two nodes: a training is preempted, saved, requeued and resumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
import slurm
from commands import copy_project, documented_command
from hosts import Hosts, wait_until
from slurm import Slurm
from trainings import ACROSS, Outcome, assert_same, outcome, training

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := hosts.missing() or slurm.missing():
        pytest.skip(reason)
    cluster = Hosts(tmp_path_factory.mktemp("shared"))
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture(scope="module")
def batch(cluster: Hosts) -> Slurm:
    copy_project(cluster.shared / "project")
    return Slurm(cluster)


def submit(cluster: Hosts, batch: Slurm, *command: object) -> str:
    """Submit a command with the documented options; return the id of the job."""
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{cluster.shared}/mlflow.db"}
    options = documented_command("sbatch ").partition(" training.run ")[0].split()
    said = batch.run(*options, *command, cwd=cluster.shared / "project", **environment)
    return re.sub(r"\D", "", said)


def log_of(cluster: Hosts, job: str) -> str:
    file = cluster.shared / "project" / f"slurm-{job}.log"
    return file.read_text(errors="replace") if file.exists() else ""


def test_a_preempted_training_saves_and_is_requeued_and_resumed(
    cluster: Hosts, batch: Slurm, four_classes: Path, undisturbed: Outcome
) -> None:
    job = submit(cluster, batch, *training(four_classes, cluster.shared, *ACROSS))
    wait_until(lambda: bool(list((cluster.shared / "runs").glob("*/step-*"))) or batch.state(job) == "FAILED")
    batch.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does two minutes before the end
    wait_until(lambda: batch.state(job) == "PENDING" or "the command has ended" in log_of(cluster, job))
    assert "requeued" in log_of(cluster, job), log_of(cluster, job)
    batch.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
    wait_until(lambda: batch.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    log = log_of(cluster, job)
    assert batch.state(job) == "COMPLETED", log
    assert re.search(r"^run [0-9a-f]{32} goes on from its checkpoint of step \d+", log, re.MULTILINE), log
    assert_same(outcome(log, cluster.shared), undisturbed)
    assert not list((cluster.shared / "project").rglob("token"))


def test_a_command_that_fails_fails_the_job(cluster: Hosts, batch: Slurm) -> None:
    job = submit(cluster, batch, "training.run", "tiny-imagenet", "--data", cluster.shared / "nothing")
    wait_until(lambda: batch.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert batch.state(job) == "FAILED"
    assert "the command has ended with 2" in log_of(cluster, job)
