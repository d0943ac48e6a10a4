"""MLflow on PostgreSQL: `cluster.local up --postgres` with the real server, where it is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_cluster_local import WAIT_SECONDS, Folder, kill_all, make_folder

from cluster import postgres
from errors import InputError

POINTS = 100


def installed() -> postgres.Installation:
    try:
        return postgres.find_installation()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Return a folder that the server's user may enter, other than pytest's."""
    path = Path(tempfile.mkdtemp(prefix="twotower-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def folder(open_path: Path) -> Iterator[Folder]:
    folder = make_folder(open_path)
    yield folder
    kill_all(folder)


def run_python(folder: Folder, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder.path, env=folder.environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_missing_server_is_one_line_with_debian_s_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres, "DEBIAN_BINARIES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(InputError, match=r"^--postgres needs PostgreSQL's server, .*: apt-get install -y postgresql$"):
        postgres.find_installation()


def test_a_missing_driver_is_one_line(folder: Folder) -> None:
    done = run_python(
        folder,
        """
import importlib.util as util
from cluster import local
find = util.find_spec
util.find_spec = lambda name, *package: None if name == "psycopg" else find(name, *package)
raise SystemExit(local.main(["up", "--postgres"]))
""",
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: --postgres needs the package psycopg, which is not installed; use: pip install '.[postgres]'\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="the server runs as who runs this")
def test_a_folder_that_the_server_cannot_enter_is_refused_and_stays_empty(tmp_path: Path) -> None:
    installation = installed()
    tmp_path.chmod(0o700)
    with pytest.raises(InputError, match=rf"user {installation.user}, as whom .* cannot enter {tmp_path}; use a"):
        postgres.prepare_data(installation, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_data_whose_password_is_lost_are_kept(open_path: Path) -> None:
    postgres.data_folder(open_path).mkdir()
    with pytest.raises(InputError, match=rf"^{open_path}/pgpass is missing"):
        postgres.prepare_data(installed(), open_path)
    assert postgres.data_folder(open_path).exists()


def test_an_interrupted_start_is_not_taken_for_data(open_path: Path) -> None:
    installation = installed()
    (open_path / "postgres.new").mkdir()
    (open_path / "postgres.new" / "PG_VERSION").write_text("15\n")
    postgres.prepare_data(installation, open_path)
    assert sorted(path.name for path in open_path.iterdir()) == ["pgpass", "postgres"]
    assert postgres.password_file(open_path).stat().st_mode & 0o077 == 0
    assert postgres.data_folder(open_path).stat().st_mode & 0o077 == 0


def test_what_is_up_is_not_another_cluster_than_asked_for(folder: Folder) -> None:
    code = f"""
from dataclasses import replace
from pathlib import Path
from cluster import local
local.SOCKET_FOLDER = str(Path.cwd())
cluster = local._plan(Path.cwd(), local.UpOptions(*{folder.ports}, postgres=False, artifacts=""))
(Path.cwd() / ".cluster").mkdir()
local._write_state(replace(cluster, ready=True))
local._answering = lambda cluster: {{}}
raise SystemExit(local.main(["up", OPTIONS]))
"""
    for options, name in (('"--postgres"', "--postgres"), ('"--artifacts", "s3://a/b"', "--artifacts s3://a/b")):
        shutil.rmtree(folder.path / ".cluster", ignore_errors=True)
        done = run_python(folder, code.replace("OPTIONS", options))
        assert done.returncode == 2
        assert done.stderr == (
            f"error: {name}: the cluster that is up was started without it; use cluster.local down first\n"
        )


class Tracked:
    """The MLflow side of a training, by the project's own code."""

    def __init__(self, address: str, storage: Path) -> None:
        from training.tracking import MetricLog, create_run, open_client

        self.client = open_client(address)
        self.run_id = create_run(self.client, "twotower", "test", {"network.name": "alexnet"})
        self.log = MetricLog(address, self.run_id, str(storage))

    def log_steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.log.log({"train/loss": 1 / (1 + step)}, step)

    def steps(self) -> list[int]:
        return [point.step for point in self.client.get_metric_history(self.run_id, "train/loss")]

    def wait_for(self, steps: int) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self.steps()) < steps:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def kill_servers(folder: Folder) -> None:
    """Kill MLflow and PostgreSQL's first process at once, as a loss of power would."""
    commands = {process: " ".join(process.cmdline()) for process in folder.processes()}
    servers = [process for process, command in commands.items() if re.search(r"mlflow.server|bin/postgres -D", command)]
    assert len(servers) >= 2, commands
    for process in servers:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_outlive_a_kill_of_the_servers(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.tracking import find_run

    installed()
    for name, seconds in (("SEND_SECONDS", 0.1), ("LONGEST_PAUSE", 0.5)):
        monkeypatch.setattr(f"training.tracking.metric_log.{name}", seconds)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    up = folder.run(*folder.up(), "--postgres", "--artifacts", "artifacts of runs")
    assert up.returncode == 0, up.stderr
    check_no_password_and_no_port(folder, up.stdout + up.stderr)
    tracked = Tracked(f"http://127.0.0.1:{folder.ports[2]}", folder.path / "runs")
    tracked.log_steps(0, POINTS // 2)
    tracked.client.log_dict(tracked.run_id, {"a": 1}, "config.json")
    tracked.wait_for(POINTS // 2)

    kill_servers(folder)
    tracked.log_steps(POINTS // 2, POINTS)
    assert folder.run("status").returncode == 1
    up = folder.run(*folder.up(), "--postgres")
    assert up.returncode == 0, up.stderr
    tracked.log.close(seconds=60)
    assert tracked.steps() == list(range(POINTS))
    run = find_run(tracked.client, tracked.run_id)
    assert run.data.params["network.name"] == "alexnet"
    (artifact,) = (folder.path / "artifacts of runs").rglob("config.json")
    assert run.info.artifact_uri == artifact.parent.as_uri()
    assert not (folder.path / "mlflow.db").exists()

    sockets = Path(json.loads((folder.path / ".cluster" / "local.json").read_text())["socket_folder"])
    assert sockets.is_dir()
    assert folder.run("down").returncode == 0
    assert folder.processes() == []
    assert not sockets.exists()


def check_no_password_and_no_port(folder: Folder, said: str) -> None:
    state = folder.path / ".cluster"
    password = (state / "pgpass").read_text().strip().rpartition(":")[2]
    assert len(password) == 64
    for process in psutil.process_iter(["cmdline", "environ"]):
        assert password not in str(process.info)
    for text in (said, *(log.read_text() for log in state.glob("*.log")), (state / "local.json").read_text()):
        assert password not in text
    server = [process for process in folder.processes() if process.name() == "postgres"]
    assert server
    assert [connection for process in server for connection in process.net_connections(kind="inet")] == []
