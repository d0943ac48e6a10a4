"""The three jobs on a head and two hosts with addresses of their own, undisturbed and when a host loses its link."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hosts
import pytest
import torch
from commands import run_command
from hosts import Host, Hosts, Job, wait_until
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE
from shard_reading import folder_bytes

from training.checkpoint import MODEL, read_model
from training.launch.store import CheckpointStore
from training.tracking import open_client

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := hosts.missing():
        pytest.skip(reason)
    cluster = Hosts(tmp_path_factory.mktemp("shared"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


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


@pytest.fixture(scope="module")
def on_one_host(four_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same training with two workers on a Ray of its own, undisturbed."""
    folder = tmp_path_factory.mktemp("one-host")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    workers = ("--parallel.data", 2, "--parallel.cpus-per-worker", 1)
    done = run_command(*training(four_classes, folder, *workers), env=environment)
    assert done.returncode == 0, done.stderr
    return outcome(done.stdout, folder)


@pytest.fixture(scope="module")
def data(four_classes: Path, cluster: Hosts) -> Path:
    """Shards in the folder that the hosts share."""
    return Path(shutil.copytree(four_classes, cluster.shared / "shards"))


class Seen:
    """The hosts on which processes of a name were seen."""

    def __init__(self, cluster: Hosts, name: str) -> None:
        self.most: dict[str, int] = {}
        self._cluster, self._name, self._ended = cluster, name, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Seen:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            for host in (self._cluster.head, self._cluster.one, self._cluster.two):
                if count := len(host.processes(self._name)):
                    self.most[host.name] = max(count, self.most.get(host.name, 0))


@contextlib.contextmanager
def cut_off(cluster: Hosts, host: Host, job: Job, when: Callable[[], bool]) -> Iterator[None]:
    """Take a host's link down as soon as `when` holds, while the job runs; let it join again at the end."""
    wait_until(lambda: when() or job.process.poll() is not None)
    assert job.process.poll() is None, job.log
    host.set_link("down")
    try:
        yield
    finally:
        cluster.rejoin(host)


def checkpoints(cluster: Hosts) -> set[Path]:
    return set((cluster.shared / "runs").glob("*/step-*"))


def test_two_workers_on_two_hosts_train_as_on_one(cluster: Hosts, data: Path, on_one_host: Outcome) -> None:
    with Seen(cluster, "RayTrainWorker") as seen:
        log = cluster.submit(*training(data, cluster.shared, *ACROSS)).result()
    assert seen.most == {"one": 1, "two": 1}
    across = outcome(log, cluster.shared)
    assert_same(across, on_one_host)
    print(f"images/s: {across.images_per_second:.0f} on two hosts, {on_one_host.images_per_second:.0f} on one")


def test_towers_stay_together_on_a_host(cluster: Hosts, data: Path, on_one_host: Outcome) -> None:
    with Seen(cluster, "RayTrainWorker") as seen:
        fields = ("--parallel.data", 1, "--parallel.model", 2, "--parallel.cpus-per-worker", 1)
        log = cluster.submit(*training(data, cluster.shared, *fields)).result()
    assert list(seen.most.values()) == [2]
    assert_same(outcome(log, cluster.shared), on_one_host)


def test_two_pairs_of_towers_are_on_two_hosts(cluster: Hosts, data: Path, on_one_host: Outcome) -> None:
    with Seen(cluster, "RayTrainWorker") as seen:
        log = cluster.submit(*training(data, cluster.shared, "--parallel.data", 2, "--parallel.model", 2)).result()
    assert seen.most == {"one": 2, "two": 2}
    assert_same(outcome(log, cluster.shared), on_one_host)


def test_a_training_that_loses_a_host_goes_on_when_it_is_back(cluster: Hosts, data: Path, on_one_host: Outcome) -> None:
    before = checkpoints(cluster)
    job = cluster.submit(*training(data, cluster.shared, *ACROSS))
    with cut_off(cluster, cluster.two, job, lambda: bool(checkpoints(cluster) - before)):
        wait_until(lambda: "restarting from the newest checkpoint (1 of" in job.log)
    assert_same(outcome(job.result(), cluster.shared), on_one_host)


def test_an_elastic_training_that_loses_a_host_goes_on_without_it(
    cluster: Hosts, data: Path, on_one_host: Outcome
) -> None:
    before = checkpoints(cluster)
    elastic = ("--parallel.data", "1..2", "--parallel.cpus-per-worker", 2)
    job = cluster.submit(*training(data, cluster.shared, *elastic))
    with cut_off(cluster, cluster.one, job, lambda: bool(checkpoints(cluster) - before)):
        log = job.result()
    assert_same(outcome(log, cluster.shared), on_one_host)


def test_a_build_goes_on_without_a_host(cluster: Hosts, raw_folder: Path, tiny_shards: Path) -> None:
    output = cluster.shared / "built"
    raw = shutil.copytree(raw_folder, cluster.shared / "raw" / "tiny")
    command = ("preprocess.build_shards", "--input", raw, "--output", output, "--short-side", TINY_SHORT_SIDE)
    command += ("--shard-samples", TINY_SHARD_SAMPLES, "--max-rejected", MAX_REJECTED, "--ray", "auto")
    job = cluster.submit(*command)
    with cut_off(cluster, cluster.two, job, lambda: bool(list(output.glob("*.tar")))):
        job.result()
    assert folder_bytes(output) == folder_bytes(tiny_shards)


def test_an_evaluation_whose_host_is_lost_fails_and_is_repeated(cluster: Hosts, data: Path) -> None:
    run = max((cluster.shared / "runs").iterdir()).name
    command = ("training.evaluate", "--run", run, "--data", data, "--output")
    cluster.submit(*command, cluster.shared / "undisturbed").result()
    on_a_host = ("--entrypoint-num-cpus", 2)
    job = cluster.submit(*command, cluster.shared / "report", options=on_a_host)
    both = (cluster.one, cluster.two)
    wait_until(lambda: any(host.processes("training.evaluate") for host in both))
    (host,) = (host for host in both if host.processes("training.evaluate"))
    with cut_off(cluster, host, job, lambda: True):
        assert job.process.wait(300) != 0
    cluster.submit(*command, cluster.shared / "report", options=on_a_host).result()
    reports = [json.loads((cluster.shared / name / "report.json").read_text()) for name in ("undisturbed", "report")]
    assert reports[0]["top1"] == reports[1]["top1"]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"])
