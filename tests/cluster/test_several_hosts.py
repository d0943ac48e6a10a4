"""The three jobs on a head and two hosts with addresses of their own, undisturbed and when a host loses its link."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hosts
import pytest
from commands import documented_command
from hosts import Host, Hosts, Job, wait_until
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE
from shard_reading import folder_bytes
from trainings import ACROSS, Outcome, assert_same, outcome, training

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]


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


def test_two_workers_train_on_two_hosts_as_on_one(cluster: Hosts, data: Path, undisturbed: Outcome) -> None:
    together = ("--parallel.data", 2, "--parallel.cpus-per-worker", 1)
    outcomes = []
    for workers, hosts_used in ((ACROSS, [1, 1]), (together, [2])):
        with Seen(cluster, "RayTrainWorker") as seen:
            log = cluster.submit(*training(data, cluster.shared, *workers)).result()
        assert list(seen.most.values()) == hosts_used
        outcomes.append(outcome(log, cluster.shared))
        assert_same(outcomes[-1], undisturbed)
    two, one = (outcome.images_per_second for outcome in outcomes)
    print(f"two workers, images/s: {two:.0f} on two hosts, {one:.0f} on one")


def test_towers_stay_together_on_a_host(cluster: Hosts, data: Path, undisturbed: Outcome) -> None:
    with Seen(cluster, "RayTrainWorker") as seen:
        fields = ("--parallel.data", 1, "--parallel.model", 2, "--parallel.cpus-per-worker", 1)
        log = cluster.submit(*training(data, cluster.shared, *fields)).result()
    assert list(seen.most.values()) == [2]
    assert_same(outcome(log, cluster.shared), undisturbed)


def test_two_pairs_of_towers_are_on_two_hosts(cluster: Hosts, data: Path, undisturbed: Outcome) -> None:
    with Seen(cluster, "RayTrainWorker") as seen:
        log = cluster.submit(*training(data, cluster.shared, "--parallel.data", 2, "--parallel.model", 2)).result()
    assert seen.most == {"one": 2, "two": 2}
    assert_same(outcome(log, cluster.shared), undisturbed)


def test_a_stopped_job_goes_on_as_another_job(cluster: Hosts, data: Path, undisturbed: Outcome) -> None:
    before = checkpoints(cluster)
    job = cluster.submit(*training(data, cluster.shared, *ACROSS))
    wait_until(lambda: bool(checkpoints(cluster) - before) or job.process.poll() is not None)
    stopped = re.search(r"raysubmit_\w+", job.log)
    run = re.search(r"^MLflow run ([0-9a-f]{32})", job.log, re.MULTILINE)
    assert stopped, job.log
    assert run, job.log
    cluster.type_job(documented_command("ray job stop ").replace("JOB_ID", stopped[0])).result()
    job.process.wait(hosts.WAIT_SECONDS)
    resume = documented_command("ray job submit -- python -m training.run --resume ").replace("RUN_ID", run[1])
    log = cluster.type_job(f"{resume} --storage {cluster.shared / 'runs'}").result()
    assert_same(outcome(log, cluster.shared), undisturbed)


def test_prometheus_finds_the_metrics_of_all_hosts(cluster: Hosts) -> None:
    session = "/tmp/ray/session_latest"
    configuration = cluster.head.run("cat", f"{session}/metrics/prometheus/prometheus.yml")
    assert "prom_metrics_service_discovery.json" in configuration
    fetch = "import sys, urllib.request as r; print(r.urlopen('http://' + sys.argv[1] + '/metrics').read().decode())"

    def hosts_with_metrics() -> set[str]:
        groups = json.loads(cluster.head.run("cat", f"{session}/prom_metrics_service_discovery.json"))
        targets = [target for group in groups for target in group["targets"]]
        found = {target: cluster.head.run("python", "-c", fetch, target) for target in targets}
        return {target.partition(":")[0] for target, text in found.items() if "ray_node_cpu_utilization" in text}

    # A host that has just joined has none yet.
    wait_until(lambda: hosts_with_metrics() == {host.address for host in (cluster.head, cluster.one, cluster.two)}, 120)


def test_a_wrong_interface_ends_the_training_with_one_line(cluster: Hosts, data: Path) -> None:
    wrong = ("--runtime-env-json", json.dumps({"env_vars": {"GLOO_SOCKET_IFNAME": "lo"}}))
    job = cluster.submit(*training(data, cluster.shared, *ACROSS), options=wrong)
    assert job.process.wait(hosts.WAIT_SECONDS) != 0
    said = [line for line in job.log.splitlines() if "GLOO_SOCKET_IFNAME" in line and "Running entrypoint" not in line]
    assert said
    message = (
        r"GLOO_SOCKET_IFNAME means 127\.0\.0\.1 on (one|two): other hosts do not reach loopback; unset it, or name "
    )
    assert all(re.search(message, line) for line in said)
    assert "Traceback" not in job.log


def test_a_training_that_loses_a_host_goes_on_when_it_is_back(cluster: Hosts, data: Path, undisturbed: Outcome) -> None:
    before = checkpoints(cluster)
    job = cluster.submit(*training(data, cluster.shared, *ACROSS))
    with cut_off(cluster, cluster.two, job, lambda: bool(checkpoints(cluster) - before)):
        wait_until(lambda: "restarting from the newest checkpoint (1 of" in job.log)
    assert_same(outcome(job.result(), cluster.shared), undisturbed)


def test_an_elastic_training_that_loses_a_host_goes_on_without_it(
    cluster: Hosts, data: Path, undisturbed: Outcome
) -> None:
    before = checkpoints(cluster)
    elastic = ("--parallel.data", "1..2", "--parallel.cpus-per-worker", 2)
    job = cluster.submit(*training(data, cluster.shared, *elastic))
    with cut_off(cluster, cluster.one, job, lambda: bool(checkpoints(cluster) - before)):
        log = job.result()
    assert_same(outcome(log, cluster.shared), undisturbed)


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
        assert job.process.wait(hosts.WAIT_SECONDS) != 0
    cluster.submit(*command, cluster.shared / "report", options=on_a_host).result()
    reports = [json.loads((cluster.shared / name / "report.json").read_text()) for name in ("undisturbed", "report")]
    assert reports[0]["top1"] == reports[1]["top1"]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"])
