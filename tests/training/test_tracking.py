"""The MLflow run while its training runs."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from errors import InputError
from training import runs
from training.checkpoint import PAGE
from training.tracking import LAST_CHECKPOINT, create_run, fetch_checkpoint, open_client
from training.tracking.claim import HEARTBEAT, OWNER, claimed


def test_one_process_at_a_time_trains_a_run(store: str) -> None:
    client = open_client(store)
    run_id = create_run(client, "twotower", "test", {})
    with (
        claimed(client, run_id),
        pytest.raises(InputError, match=f"run {run_id} is being trained by process {os.getpid()}"),
    ):
        claimed(client, run_id).__enter__()
    with claimed(client, run_id):
        pass


def test_a_heartbeat_that_stopped_on_another_machine_frees_the_run(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tracking.claim.CLAIM_SECONDS", 0.0)
    client = open_client(store)
    run_id = create_run(client, "twotower", "test", {})
    client.set_tag(run_id, OWNER, "another-machine 1 abc")
    client.set_tag(run_id, HEARTBEAT, str(time.time() - 5))
    with pytest.raises(InputError, match="process 1 on another-machine"):
        claimed(client, run_id).__enter__()
    client.set_tag(run_id, HEARTBEAT, str(time.time() - 100))
    with claimed(client, run_id):
        pass


def test_the_table_of_runs_tells_the_dead_from_the_living(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = open_client(store)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    alive, dead = (create_run(client, "twotower", "test", {"recipe": "sample"}) for _ in range(2))
    for run_id, pid in ((alive, os.getpid()), (dead, ended.pid)):
        client.set_tag(run_id, OWNER, f"{socket.gethostname()} {pid} abc")
        client.set_tag(run_id, HEARTBEAT, str(time.time()))
    client.set_tag(dead, LAST_CHECKPOINT, "/runs/1/step-00000010")
    client.log_metric(dead, "val/top1", 0.25)
    runs.main([])
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines[alive][1:4] == ["sample", "running", "0/?"]
    assert lines[dead][1:5] == ["sample", "interrupted", "1/?", "0.2500"]
    assert lines[dead][-1] == "/runs/1/step-00000010"
    assert lines["python"] == ["python", "-m", "training.run", "--resume", dead]
    assert client.get_run(dead).info.status == "KILLED"


def test_a_command_that_reads_a_run_marks_it_if_its_process_is_gone(store: str, tmp_path: Path) -> None:
    client = open_client(store)
    run_id = create_run(client, "twotower", "test", {})
    client.set_tag(run_id, OWNER, "another-machine 1 abc")
    (tmp_path / "step-00000010").mkdir()
    (tmp_path / "step-00000010" / PAGE).touch()
    client.set_tag(run_id, LAST_CHECKPOINT, str(tmp_path / "step-00000010"))
    for heartbeat, status in ((time.time(), "RUNNING"), (time.time() - 100, "KILLED")):
        client.set_tag(run_id, HEARTBEAT, str(heartbeat))
        assert fetch_checkpoint(client, run_id, "last", tmp_path / "copy") == tmp_path / "step-00000010"
        assert client.get_run(run_id).info.status == status
