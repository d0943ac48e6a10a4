"""The use of the machine, as metrics of a run."""

import time
from pathlib import Path

import pytest

from training.tracking import SystemMetrics, create_run, open_client


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tracking.system_metrics.SAMPLE_SECONDS", 0.05)


def test_the_use_of_the_machine_is_logged_until_the_end_and_over_restarts(store: str, tmp_path: Path) -> None:
    client = open_client(store)
    run_id = create_run(client, "twotower", "test", {})
    created = time.time()
    for _ in range(2):
        with SystemMetrics(store, run_id, str(tmp_path), created, is_only_node=True):
            time.sleep(0.5)
    metrics = client.get_run(run_id).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    for name in ("cpu_utilization_percentage", "disk_usage_percentage"):  # 0.0 of an idle or an empty one
        assert 0 <= metrics[f"system/{name}"] <= 100
    assert metrics["system/network_receive_megabytes"] >= 0
    steps = [point.step for point in client.get_metric_history(run_id, "system/cpu_utilization_percentage")]
    assert len(steps) > 4
    assert steps == sorted(set(steps))
    time.sleep(0.3)
    assert len(client.get_metric_history(run_id, "system/cpu_utilization_percentage")) == len(steps), "it has ended"
    assert not list(tmp_path.glob("*/unsent/*"))


def test_nodes_have_their_own_metrics(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client(store)
    run_id = create_run(client, "twotower", "test", {})
    for host in ("one", "other.domain:1"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        with SystemMetrics(store, run_id, str(tmp_path), time.time(), is_only_node=False):
            time.sleep(0.3)
    nodes = {key.split("/")[1] for key in client.get_run(run_id).data.metrics}
    assert nodes == {"one", "other.domain-1"}
