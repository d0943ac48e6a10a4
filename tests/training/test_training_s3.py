"""A training whose data and checkpoints are in an S3 store gives the weights of one on a disk, and is resumed there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROJECT
from s3_server import BUCKET, FaultyStore, refuse, upload

from training.checkpoint import MODEL, read_model
from training.launch.store import CheckpointStore

SMALL = ("--network.name", "alexnet-small", "--batch-size", "16", "--precision", "float32", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT), prepend=":")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    found = re.search(r"^run ([0-9a-f]{32})$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return found[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_data_and_checkpoints_in_a_bucket(tiny_shards: Path, s3: FaultyStore, folder: Path) -> None:
    upload(s3.endpoint, tiny_shards, "tiny")
    data, storage = f"s3://{BUCKET}/tiny", f"s3://{BUCKET}/trainings"
    staging = ("--staging", folder / "staging", "--staging-bytes", 1 << 30)
    train = ("training.run", "tiny-imagenet", *SMALL)
    s3.fault(refuse(503, "SlowDown"), ".tar", times=2)
    there = run_id(run(folder, *train, "--data", data, "--storage", storage, *staging, "--epochs", 1))
    resumed = run(folder, "training.run", "--resume", there, "--epochs", 2)
    assert run_id(resumed) == there
    assert f"goes on from its checkpoint of step 6, epoch 2 of 2: {storage}/{there}/step-00000006" in resumed.stdout
    here = run_id(run(folder, *train, "--data", tiny_shards, "--epochs", 2))
    with (
        CheckpointStore(storage, there).fetch(12) as remote,
        CheckpointStore(str(folder / "runs"), here).fetch(12) as local,
    ):
        weights, expected = read_model(remote / MODEL), read_model(local / MODEL)
    assert all(weights[name].equal(expected[name]) for name in expected)
    evaluate = ("training.evaluate", "--run", there, "--data", data, *staging, "--output", "report")
    done = run(folder, *evaluate)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "report" / "report.json").read_text())["samples"] == 42


def test_what_cannot_be_read_is_one_line_before_anything_starts(
    s3: FaultyStore, folder: Path, tiny_shards: Path
) -> None:
    refused = run(folder, "training.run", "tiny-imagenet", "--data", "s3://missing/shards")
    problem = "there is no such bucket; use one that exists, and the endpoint that has it (AWS_ENDPOINT_URL)"
    assert (refused.returncode, refused.stderr) == (2, f"error: s3://missing/shards cannot be read: {problem}\n")
    assert not list(folder.iterdir())
