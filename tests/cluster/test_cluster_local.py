"""A cluster of one, for real, in a folder and a HOME of its own; one start is shared, and the last test ends it.

Processes are counted independently of how `cluster` finds them: all that work in the folder or name it in their
environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from commands import PROJECT

WAIT_SECONDS = 600.0


@dataclass
class Folder:
    """A project folder of its own, with a home of its own and three free ports."""

    path: Path
    environment: dict[str, str]
    ports: tuple[int, int, int]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.local", *arguments],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=WAIT_SECONDS * 2)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def up(self) -> list[str]:
        dashboard, ray, mlflow = map(str, self.ports)
        return ["up", "--dashboard-port", dashboard, "--ray-port", ray, "--mlflow-port", mlflow]

    def shell(self, exports: str, command: str) -> str:
        """Type the exports and a command into a shell in which .venv is activated; return its output."""
        answer = subprocess.run(
            ["bash", "-c", f"PATH={Path(sys.executable).parent}:$PATH\n{exports}\n{command}"],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                named = any(str(self.path) in value for value in process.environ().values())
                if named or Path(process.cwd()).is_relative_to(self.path):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def bind_free_port(probe: socket.socket) -> None:
    """Bind a port below those that the system gives to others: it is still free when the services start."""
    while True:
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20000, 30000)))
            return


def make_folder(path: Path) -> Folder:
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for probe in (a, b, c):
            bind_free_port(probe)
        ports = (a.getsockname()[1], b.getsockname()[1], c.getsockname()[1])
    home, project = path / "home", path / "project with spaces"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0" * 64)  # as any local `ray.init()` leaves one: not the cluster's
    project.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = clean | {"HOME": str(home), "PYTHONPATH": str(PROJECT), "PATH": os.defpath}
    return Folder(project, environment, ports)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """Return a folder in which nothing was started yet; nothing is left running in it afterwards."""
    folder = make_folder(tmp_path)
    yield folder
    kill_all(folder)


@dataclass
class Running:
    """A cluster that is up."""

    folder: Folder
    exports: str
    said: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start a cluster where another start was killed; whoever needs it comes before the test that ends it."""
    folder = make_folder(tmp_path_factory.mktemp("cluster"))
    try:
        kill_a_start(folder)
        up = folder.run(*folder.up())
        assert up.returncode == 0, up.stderr
        yield Running(folder, up.stdout, up.stderr)
    finally:
        kill_all(folder)


def kill_all(folder: Folder) -> None:
    for process in folder.processes():
        process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_busy_port_is_named_and_nothing_starts(folder: Folder) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", folder.ports[2]))
        other.listen()
        up = folder.run(*folder.up())
    assert up.returncode == 2
    assert up.stderr.splitlines() == [
        f"error: port {folder.ports[2]} of 127.0.0.1 is in use; choose another with --mlflow-port"
    ]
    assert folder.processes() == []
    assert folder.run("status").returncode == 1


def test_where_nothing_is_up_down_says_so_and_succeeds(folder: Folder) -> None:
    down = folder.run("down")
    assert (down.returncode, down.stdout, down.stderr) == (0, "", "nothing is up\n")
    status = folder.run("status")
    assert status.returncode == 1
    assert status.stderr.startswith("down;")


def test_a_second_command_at_the_same_time_is_refused(folder: Folder) -> None:
    (folder.path / ".cluster").mkdir()
    with (folder.path / ".cluster" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        up = folder.run(*folder.up())
    assert up.returncode == 2
    assert "another `cluster.local` is at work" in up.stderr
    assert folder.processes() == []


def daemons_run(folder: Folder) -> bool:
    """True when daemons have left the command that starts Ray."""
    names = [process.name() for process in folder.processes()]
    return "gcs_server" in names and len(names) > 3


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(folder: Folder, signum: signal.Signals) -> None:
    up = folder.start(*folder.up())
    wait_until(lambda: daemons_run(folder))
    up.send_signal(signum)
    out, err = up.communicate(timeout=WAIT_SECONDS)
    assert up.returncode == 128 + signum
    assert out == ""
    assert err.endswith("interrupted\n")
    assert folder.processes() == []
    assert folder.run("status").stderr.startswith("down;")


def kill_a_start(folder: Folder) -> None:
    up = folder.start(*folder.up())
    wait_until(lambda: daemons_run(folder))
    up.kill()
    up.communicate(timeout=WAIT_SECONDS)


def test_what_a_killed_up_left_is_found_and_ended(folder: Folder) -> None:
    kill_a_start(folder)
    assert folder.processes()
    status = folder.run("status")
    assert status.returncode == 1
    assert "not all is up" in status.stderr
    assert folder.run("down").returncode == 0
    assert folder.processes() == []


def test_up_ends_what_a_killed_up_left(running: Running) -> None:
    assert running.said.startswith("ending what an earlier start left behind\n")
    assert [process.name() for process in running.folder.processes()].count("raylet") == 1


def test_a_job_runs_with_the_project_s_python_in_the_project(running: Running) -> None:
    says = "import os, sys; print('job', sys.executable, os.environ['MLFLOW_TRACKING_URI'], os.getcwd())"
    output = running.folder.shell(running.exports, f'ray job submit -- python -c "{says}"')
    url = f"http://127.0.0.1:{running.folder.ports[2]}"
    assert f"job {sys.executable} {url} {running.folder.path}" in output.splitlines()


def test_ray_asks_for_the_token(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.folder.ports[0], timeout=WAIT_SECONDS)
    connection.request("GET", "/api/jobs/")
    assert connection.getresponse().status == 401
    connection.close()
    assert (running.folder.path / ".cluster" / "auth_token").stat().st_mode & 0o077 == 0


def test_nothing_listens_to_the_network(running: Running) -> None:
    listening = {
        connection.laddr.ip
        for process in running.folder.processes()
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert listening


def test_a_run_of_the_server_is_read_without_it(running: Running) -> None:
    write = """
        import os, mlflow
        client = mlflow.MlflowClient()
        run = client.create_run(client.create_experiment("e")).info.run_id
        client.log_dict(run, {"a": 1}, "config.json")
        print("run", run)
    """
    read = """
        import sys, mlflow
        print("read", mlflow.artifacts.load_dict(f"runs:/{sys.argv[1]}/config.json"))
    """
    python = "python -c \"import sys, textwrap; exec(textwrap.dedent(sys.stdin.read()))\" {} <<'EOF'\n{}\nEOF"
    output = running.folder.shell(running.exports, python.format("", write))
    run = next(line.split()[1] for line in output.splitlines() if line.startswith("run "))
    store = "export MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
    assert "read {'a': 1}" in running.folder.shell(store, python.format(run, read))


def test_a_second_up_says_it_is_up_and_prints_the_same(running: Running) -> None:
    again = running.folder.run(*running.folder.up())
    assert (again.returncode, again.stdout, again.stderr) == (0, running.exports, "already up\n")
    status = running.folder.run("status")
    assert (status.returncode, status.stdout) == (0, running.exports)


def test_a_copy_of_the_folder_does_not_touch_the_cluster(running: Running, folder: Folder) -> None:
    state = Path(".cluster") / "local.json"
    (folder.path / state).parent.mkdir()
    (folder.path / state).write_bytes((running.folder.path / state).read_bytes())
    down = folder.run("down")
    assert down.returncode == 2
    assert str(running.folder.path) in down.stderr
    assert running.folder.run("status").returncode == 0


def test_down_ends_all_that_it_and_its_jobs_started_and_none_other(running: Running) -> None:
    folder = running.folder
    job = "setsid python -c 'import time; time.sleep(1000)' & exec python -c 'import time; time.sleep(2000)'"
    folder.shell(running.exports, f'ray job submit --no-wait -- bash -c "{job}"')

    def job_runs() -> bool:
        commands = [process.cmdline()[-1:] for process in folder.processes()]
        return ["import time; time.sleep(1000)"] in commands and ["import time; time.sleep(2000)"] in commands

    wait_until(job_runs)
    with subprocess.Popen(["sleep", "3000"]) as other:
        try:
            down = folder.run("down")
            assert (down.returncode, down.stderr) == (0, "down\n")
            assert folder.processes() == []
            assert other.poll() is None
        finally:
            other.kill()
    assert folder.run("status").returncode == 1
