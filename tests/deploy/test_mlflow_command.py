"""The MLflow server of deploy/kubernetes: its container's command, run here with a PostgreSQL server of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manifests import containers, pod_templates, written

from cluster import postgres
from errors import InputError

WAIT_SECONDS = 180.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that the server's user may enter, other than pytest's."""
    path = Path(tempfile.mkdtemp(prefix="twotower-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, start_new_session=True, **options) as started:
        try:
            yield started
        finally:
            os.killpg(started.pid, signal.SIGINT)


@pytest.fixture
def database(folder: Path) -> Iterator[dict[str, str]]:
    """Return the variables with which libpq reaches a database, as the manifest sets them."""
    try:
        installation = postgres.find_installation()
    except InputError as error:
        pytest.skip(str(error))
    postgres.prepare_data(installation, folder)
    sockets = postgres.make_socket_folder(installation, "/tmp")
    command = list(postgres.server_command(installation, folder, sockets))
    with process(command, cwd="/", **postgres.as_user(installation.user)):
        deadline = time.monotonic() + WAIT_SECONDS
        while not postgres.is_ready(installation, sockets):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        password = postgres.password_file(folder).read_text().strip().rpartition(":")[2]
        yield {"PGHOST": sockets, "PGPASSWORD": password}
    shutil.rmtree(sockets)


def ask(port: int, host: str, path: str, question: dict[str, object] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = None if question is None else json.dumps(question)
    headers = {"Host": host, "Content-Type": "application/json"}
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.slow
def test_it_serves_runs_from_postgresql_and_answers_only_to_its_names(folder: Path, database: dict[str, str]) -> None:
    (template,) = pod_templates(written()["base/mlflow.yaml Deployment mlflow"])
    (container,) = containers(template)
    assert {"PGHOST", "PGPASSWORD"} <= {variable["name"] for variable in container["env"]}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    replacements = {"--port=5000": f"--port={port}", "--host=0.0.0.0": "--host=127.0.0.1"}
    artifacts = folder / "artifacts"
    arguments = [
        replacements.get(argument, argument).replace("$(ARTIFACTS)", artifacts.as_uri())
        for argument in container["args"]
    ]
    command = [sys.executable, "-m", *container["command"], *arguments]
    environment = {**os.environ, **database, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with process(command, cwd=folder, env=environment) as server:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):
                if ask(port, "10.1.2.3:5000", "/health")[0] == 200:  # as the kubelet asks
                    break
            time.sleep(0.2)
        create = "/api/2.0/mlflow/experiments/create"
        status, answer = ask(port, "mlflow:5000", create, {"name": "e"})
        assert status == 200, answer
        experiment = json.loads(answer)["experiment_id"]
        status, answer = ask(port, "localhost:5000", f"/api/2.0/mlflow/experiments/get?experiment_id={experiment}")
        assert json.loads(answer)["experiment"]["artifact_location"] == f"mlflow-artifacts:/{experiment}"
        for other in ("evil.example:5000", "10.1.2.3:5000", "mlflow"):
            assert ask(port, other, create, {"name": "f"})[0] == 403
    assert not (folder / "mlflow.db").exists()
    assert database["PGPASSWORD"] not in " ".join(command)
