"""Metrics reach MLflow exactly once, whoever is away or dies on the way."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run_command
from fsspec.implementations.memory import MemoryFileSystem
from mlflow import MlflowClient
from pyarrow.fs import FSSpecHandler, PyFileSystem

from training import runs
from training.tracking import UNSETTLED, MetricLog, create_run, find_run, finish, open_client, settle
from training.tracking.claim import HEARTBEAT, OWNER
from training.tracking.spool import RunUpdate, Spool, writers

DEAD = "another-machine 1 abc"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run_id(store: str, storage: Path) -> str:
    client = open_client(store)
    run_id = create_run(client, "twotower", "test", {})
    client.set_tag(run_id, UNSETTLED, str(storage))
    return run_id


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # no file stays open: see `away`
    for name, seconds in (("SEND_SECONDS", 0.1), ("LONGEST_PAUSE", 0.1), ("CLOSE_PAUSE", 0.1)):
        monkeypatch.setattr(f"training.tracking.metric_log.{name}", seconds)


@contextlib.contextmanager
def away(store: str) -> Iterator[None]:
    """Let the store refuse everything: another thing lies in the place of its file."""
    file = Path(store.removeprefix("sqlite:///"))
    aside = file.rename(file.with_suffix(".aside"))
    file.mkdir()
    yield
    file.rmdir()
    aside.rename(file)


def steps(store: str, run_id: str, key: str = "train/loss") -> list[int]:
    return [point.step for point in MlflowClient(store).get_metric_history(run_id, key)]


def unsent(storage: Path) -> list[Path]:
    return list(storage.glob("*/unsent/*"))


def test_points_come_in_while_the_training_runs(store: str, storage: Path, run_id: str) -> None:
    log = MetricLog(store, run_id, str(storage))
    for step in (1, 2):
        log.log({"train/loss": 1 / step}, step)
        give_up = time.monotonic() + 60
        while len(steps(store, run_id)) < step:
            assert time.monotonic() < give_up
            time.sleep(0.05)
    log.close()
    assert unsent(storage) == []


def log_and_die(store: str, storage: Path, run_id: str, first: int, last: int, points: int) -> None:
    """Log as a training does that ends by SIGKILL; its last checkpoint is before its last points."""
    log = MetricLog(store, run_id, str(storage))
    for step in range(first, last):
        log.log({f"train/{number}": float(step) for number in range(points)}, step)
    log.flush()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("frozen_heap")
def test_10_000_points_are_there_once_after_an_outage_and_two_dead_processes(
    store: str, storage: Path, run_id: str
) -> None:
    fork = multiprocessing.get_context("fork")
    with away(store):
        for first, last in ((0, 600), (500, 1100)):  # from a checkpoint before the points of the first
            process = fork.Process(target=log_and_die, args=(store, storage, run_id, first, last, 8))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
    log = MetricLog(store, run_id, str(storage))
    for step in range(1000, 1250):
        log.log({f"train/{number}": float(step) for number in range(8)}, step)
    log.close()
    for number in range(8):
        assert steps(store, run_id, f"train/{number}") == list(range(1250))
    assert unsent(storage) == []


@pytest.mark.slow
def test_10_000_points_are_there_once_though_their_server_was_killed() -> None:
    benchmark = run_command("benchmarks.metrics")
    assert benchmark.returncode == 0, benchmark.stderr
    assert "10000 points over an outage and two killed processes: 0 missing or doubled\n" in benchmark.stdout


def test_a_request_that_was_served_without_an_answer_is_not_served_again(
    store: str, storage: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, calls = MlflowClient.log_batch, list[str]()

    def without_answer(client: MlflowClient, *arguments: object, **options: object) -> None:
        log_batch(client, *arguments, **options)
        calls.append("")
        if len(calls) == 1:
            raise TimeoutError("no answer")

    monkeypatch.setattr(MlflowClient, "log_batch", without_answer)
    log = MetricLog(store, run_id, str(storage))
    log.log({"train/loss": 1.0}, 1)
    log.flush()
    time.sleep(0.3)
    log.log({"train/loss": 2.0}, 2)
    log.close()
    assert calls
    assert steps(store, run_id) == [1, 2]


def test_steps_that_come_a_second_time_are_left_out(store: str, storage: Path, run_id: str) -> None:
    for first, last in ((1, 5), (3, 8)):
        log = MetricLog(store, run_id, str(storage))
        for step in range(first, last):
            log.log({"train/loss": float(step)}, step)
        log.close()
    assert steps(store, run_id) == list(range(1, 8))


def test_a_store_that_is_away_delays_nothing(store: str, storage: Path, run_id: str) -> None:
    log = MetricLog(store, run_id, str(storage))
    with away(store):
        began = time.monotonic()
        for step in range(1, 1001):
            log.log({"train/loss": 1.0}, step)
        log.flush()
        assert time.monotonic() - began < 5  # a single attempt to send takes that long at a real server
        log.close(0.5)
    assert unsent(storage)


def test_the_oldest_points_make_room_and_the_run_says_how_many(
    store: str, storage: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tracking.spool.SPOOL_BYTES", 100_000)
    log = MetricLog(store, run_id, str(storage))
    with away(store):
        for step in range(1, 101):
            log.log({f"train/{number}": 1.0 for number in range(40)}, step)
            log.flush()
    log.close()
    kept = steps(store, run_id, "train/0")
    assert kept[-10:] == list(range(91, 101))
    assert len(kept) < 90
    assert find_run(open_client(store), run_id).data.tags["twotower.dropped_points"] == str(40 * (100 - len(kept)))


def test_points_are_sent_though_the_storage_is_full(
    store: str, tmp_path: Path, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    log = MetricLog(store, run_id, str(tmp_path / "file"))
    for step in (1, 2, 3):
        log.log({"train/loss": 1.0}, step)
        log.flush()
    log.close()
    assert steps(store, run_id) == [1, 2, 3]
    assert caplog.text.count("metrics cannot be kept in") == 1


def test_what_waits_at_the_end_of_a_training_is_sent_by_the_next_command(
    store: str,
    storage: Path,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = open_client(store)
    client.set_tag(run_id, OWNER, DEAD)
    client.set_tag(run_id, HEARTBEAT, str(time.time() - 1000))
    with away(store):
        log = MetricLog(store, run_id, str(storage))
        for step in range(1, 51):
            log.log({"val/top1": 0.5}, step)
        log.record_checkpoints("/runs/1/step-00000050", None)
        log.close(0.5)
        finish(client, run_id, str(storage), "FINISHED")
    line = capsys.readouterr().err
    assert line.startswith(f"warning: MLflow has not taken all of run {run_id} (")
    assert f"its state and 50 points wait in {storage}/{run_id}/unsent; python -m training.runs sends" in line
    assert client.get_run(run_id).info.status == "RUNNING"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    runs.main([])
    output = capsys.readouterr()
    assert output.err == f"run {run_id}: MLflow has been given 50 points that had to wait\n"
    assert "finished" in output.out
    assert "/runs/1/step-00000050" in output.out
    assert steps(store, run_id, "val/top1") == list(range(1, 51))
    assert unsent(storage) == []
    assert UNSETTLED not in client.get_run(run_id).data.tags


def test_a_storage_out_of_reach_leaves_its_points_to_a_command_that_reaches_it(store: str, run_id: str) -> None:
    client = open_client(store)
    client.set_tag(run_id, UNSETTLED, "/of/another/machine")
    client.set_tag(run_id, OWNER, DEAD)
    client.set_tag(run_id, HEARTBEAT, "1000.5")
    run = settle(client, client.get_run(run_id))
    assert (run.info.status, run.info.end_time) == ("KILLED", 1000500)
    assert run.data.tags[UNSETTLED] == "/of/another/machine"


def test_a_storage_that_was_moved_is_looked_at_where_it_is(store: str, storage: Path, run_id: str) -> None:
    client = open_client(store)
    with away(store):
        log = MetricLog(store, run_id, str(storage))
        log.log({"train/loss": 1.0}, 1)
        log.close(0.5)
    storage.rename(storage.with_name("moved"))
    settle(client, client.get_run(run_id), str(storage.with_name("moved")))
    assert steps(store, run_id) == [1]
    assert UNSETTLED not in client.get_run(run_id).data.tags


def test_a_bucket_keeps_points_as_a_folder_does(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = PyFileSystem(FSSpecHandler(MemoryFileSystem()))
    monkeypatch.setattr("training.tracking.spool._open", lambda storage, run_id: (bucket, f"{storage}/{run_id}/unsent"))
    spool = Spool("runs", "1", "training")
    for step in range(3):
        spool.append(RunUpdate([("train/loss", float("nan"), 1, step)], {"a": str(step)}))
    assert writers("runs", "1") == ["training"]
    again = Spool("runs", "1", "training")
    update, names = again.oldest(2)
    assert [(point[0], point[3]) for point in update.points] == [("train/loss", 0), ("train/loss", 1)]
    assert update.tags == {"a": "1"}
    again.remove(names)
    with bucket.open_output_stream("runs/1/unsent/training-00000009-abcdef01.json") as stream:
        stream.write(b'{"points": [["train/lo')  # by a process that was killed
    left = Spool("runs", "1", "training")
    assert len(left) == 2
    assert [point[3] for point in left.oldest(100)[0].points] == [2]
