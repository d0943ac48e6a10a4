"""The MLflow run while its training runs."""

import time
from pathlib import Path

import pytest

from training.tracking import MetricLog, create_run, open_client


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_after_a_flush_the_store_has_every_point(store: str) -> None:
    client = open_client(store, create=True)
    run_id = create_run(client, "twotower", "test", {})
    log = MetricLog(store, run_id)
    for step in range(1, 401):
        log.log({"train/loss": 1 / step}, step)
    assert log.flush(60)
    steps = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    log.close()
    assert steps == list(range(1, 401))


def test_points_come_in_while_the_training_runs(store: str) -> None:
    client = open_client(store, create=True)
    run_id = create_run(client, "twotower", "test", {})
    log = MetricLog(store, run_id)
    for step in (1, 2):
        log.log({"train/loss": 1 / step}, step)
        give_up = time.monotonic() + 60
        while len(client.get_metric_history(run_id, "train/loss")) < step:
            assert time.monotonic() < give_up
            time.sleep(0.1)
    log.close()


def test_a_flush_does_not_wait_for_a_dead_server_for_ever(store: str) -> None:
    log = MetricLog(store, "0" * 32)  # no such run: the store refuses every point
    log.log({"train/loss": 1.0}, 1)
    began = time.monotonic()
    assert not log.flush(0.5)
    assert time.monotonic() - began < 30


def test_steps_that_come_a_second_time_are_left_out(store: str) -> None:
    client = open_client(store, create=True)
    run_id = create_run(client, "twotower", "test", {})
    for steps in (range(1, 5), range(3, 8)):
        log = MetricLog(store, run_id)
        for step in steps:
            log.log({"train/loss": float(step)}, step)
        log.close()
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == list(range(1, 8))
