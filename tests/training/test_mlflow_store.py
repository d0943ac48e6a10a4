"""MLflow stores as users have them: options in their address, shared, deleted experiments, artifacts out of reach."""

import dataclasses
import multiprocessing
import os
import subprocess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from commands import PROJECT
from mlflow import MlflowClient

from errors import InputError
from training.recipes import RECIPES
from training.tracking import create_run, environment, find_run, open_client, shown_uri, start_run, tracking_uri
from training.tracking.experiment import check_artifact_location, find_experiment


def in_processes(count: int, target: object, *arguments: object) -> list[int | None]:
    """Call `target` in as many processes at once, which have imported what this one has; return their exit codes."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(count, timeout=60)
    processes = [fork.Process(target=target, args=(barrier, *arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def open_at_once(barrier: Barrier, uri: str) -> None:
    barrier.wait()
    open_client(uri, create=True)


def create_at_once(barrier: Barrier, uri: str) -> None:
    client = open_client(uri)
    for number in range(20):
        barrier.wait()
        find_experiment(client, str(number))


@pytest.mark.usefixtures("frozen_heap")
def test_two_processes_make_one_sqlite_store(tmp_path: Path) -> None:
    assert in_processes(2, open_at_once, f"sqlite:///{tmp_path}/new/mlflow.db") == [0, 0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]


@pytest.mark.usefixtures("frozen_heap")
def test_two_processes_make_one_experiment(store: str) -> None:
    assert in_processes(2, create_at_once, store) == [0, 0]
    names = [experiment.name for experiment in MlflowClient(store).search_experiments()]
    assert sorted(names) == sorted(["Default", *map(str, range(20))])


@pytest.mark.parametrize("options", ["", "?timeout=30"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_sqlite_address_with_options_is_the_same_file(
    store: str, options: str, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(store.removeprefix("sqlite:///"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file.name if relative else file}{options}")
    uri = tracking_uri(file.parent)
    assert uri == f"sqlite:///{file}{options}"
    client = open_client(uri)
    assert find_experiment(client, "twotower").artifact_location == (file.parent / "mlartifacts").as_uri()


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:mlflow.db"])
def test_a_store_that_no_other_process_sees_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=f"^MLFLOW_TRACKING_URI is {uri}: it names no file; use sqlite:///PATH"):
        tracking_uri(Path.cwd())


def test_a_password_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert shown_uri("postgresql://me:secret@db/mlflow") == "postgresql://me:***@db/mlflow"
    with pytest.raises(InputError, match=r"^MLflow store http://me:\*\*\*@127\.0\.0\.1:1 cannot be used") as refusal:
        open_client("http://me:secret@127.0.0.1:1")
    assert str(refusal.value).endswith(": [Errno 111] Connection refused; start its server, or name another store")


def test_a_deleted_experiment_is_restored(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = open_client(store)
    experiment = find_experiment(client, "twotower")
    client.delete_experiment(experiment.experiment_id)
    run_id = create_run(client, "twotower", "test", {})
    assert (
        capsys.readouterr().out == "experiment 'twotower' had been deleted in MLflow: it is restored, with its runs\n"
    )
    client.delete_run(run_id)
    with pytest.raises(InputError, match=f"was deleted; restore it with: mlflow runs restore --run-id {run_id}"):
        find_run(client, run_id)


@pytest.mark.parametrize(
    ("location", "reason"),
    [("gs://bucket/artifacts", "google"), ("/proc/artifacts", "No such file or directory: '/proc")],
)
def test_artifacts_that_cannot_be_written_are_refused_and_leave_no_run(store: str, location: str, reason: str) -> None:
    client = open_client(store)
    experiment = client.create_experiment("elsewhere", artifact_location=location)
    data = PROJECT / "tests" / "data" / "shards-0.1"
    config = dataclasses.replace(RECIPES["sample"](), data=str(data), experiment="elsewhere")
    with pytest.raises(InputError, match=f"cannot be written: .*{reason}"):
        start_run(client, config, {}, PROJECT)
    assert client.search_runs([experiment]) == []


def test_a_path_of_the_server_s_machine_is_refused(tmp_path: Path) -> None:
    server = "http://mlflow.example:5000"
    with pytest.raises(InputError, match=r"server mlflow\.example are at /nowhere/mlartifacts/1: this machine has no"):
        check_artifact_location("/nowhere/mlartifacts/1", server)
    check_artifact_location(f"{tmp_path}/1", server)  # mounted here
    check_artifact_location("mlflow-artifacts:/1", server)
    check_artifact_location("/nowhere/mlartifacts/1", "http://localhost:5000")


def test_the_commit_is_known_of_another_user_s_checkout_and_unknown_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "First"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    if os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, 12345, 12345)
    assert environment(tmp_path)["git_commit"] == commit
    monkeypatch.setenv("PATH", "")
    assert environment(tmp_path)["git_commit"] == "unknown"
