"""The services of a local cluster: their commands and health checks.

Everything listens on 127.0.0.1: Ray's dashboard and job server, MLflow, and also Ray's inner ports, which would
otherwise be open to the network. Ray also asks for a token, since other users of the machine reach 127.0.0.1 too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atomic_files import atomic_write
from cluster import postgres
from machine_limits import cpu_count

HOST = "127.0.0.1"
STATE_FOLDER = ".cluster"
"""Folder in the project for the state, the token and the logs."""
PROBE_SECONDS = 5.0
JOB_STOP_SECONDS = 60
"""Time in which a job may end by itself after `ray job stop`, before it is killed."""


@dataclass(frozen=True)
class Cluster:
    """The cluster of one start, as in the state file."""

    project: str
    """Absolute path of the folder that it was started in."""
    mark: str
    dashboard_port: int
    """Ray's dashboard and job server."""
    ray_port: int
    """Ray's control store."""
    mlflow_port: int
    agent_port: int
    """Ray's agent on the node, which starts the jobs."""
    client_port: int
    """Ray's client server: nothing here uses it, but Ray starts one and has to be given a free port."""
    temp_folder: str
    """Ray's sockets, logs and spilled objects: outside the project, where the path of a socket is short enough."""
    artifacts: str = ""
    """Where MLflow keeps artifacts, a URI; empty: `mlartifacts/` in the project."""
    socket_folder: str = ""
    """Folder of PostgreSQL's socket; empty: MLflow's runs are in `mlflow.db`."""
    postgres_binaries: str = ""
    postgres_user: str | None = None
    """As in `postgres.Installation`: what has been started can be stopped after an upgrade, too."""
    ready: bool = False
    """All services answered."""


@dataclass(frozen=True)
class Service:
    """A service: its command and its health check."""

    name: str
    url: str
    mark: str
    """Mark of its processes, see `cluster.processes`."""
    command: tuple[str, ...]
    leaves_daemons: bool
    """The command ends, with 0, once its daemons run; otherwise it is the server itself."""
    attempts: int
    """Maximum number of starts."""
    answers: Callable[[], bool]
    """Returns True when clients can use it."""
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables of this service only."""
    user: str | None = None
    """User that it runs as; None: the one who starts it."""
    stop_signal: signal.Signals = signal.SIGTERM
    """Signal on which it ends in order."""


def services(cluster: Cluster) -> tuple[Service, ...]:
    """Return Ray, PostgreSQL if MLflow uses it, and MLflow, in the order in which they are started."""
    database = (_postgres(cluster),) if cluster.socket_folder else ()
    return _ray(cluster), *database, _mlflow(cluster)


def token_path(project: str | Path) -> Path:
    """Return the path of the token that Ray asks for."""
    return Path(project) / STATE_FOLDER / "auth_token"


def make_token(project: str | Path) -> None:
    """Make the project's token unless there is one: exports of a shell stay valid after a restart."""
    path = token_path(project)
    if not path.exists():
        atomic_write(path, secrets.token_hex(32).encode(), mode=0o600)


def client_environment(cluster: Cluster) -> dict[str, str]:
    """Return the variables with which `ray job` and MLflow's clients use the cluster."""
    return {
        "RAY_ADDRESS": f"http://{HOST}:{cluster.dashboard_port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path(cluster.project)),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{cluster.mlflow_port}",
    }


def service_environment(cluster: Cluster) -> dict[str, str]:
    """Return the environment of all services, and with it of all jobs."""
    variables = {**os.environ, **client_environment(cluster)}
    # Ray itself tells a job where it is. But Ray Train asks the API server for the state of its actors, and without
    # this address looks for whatever Ray runs on the machine.
    variables["RAY_API_SERVER_ADDRESS"] = variables.pop("RAY_ADDRESS")
    variables.pop("RAY_AUTH_TOKEN", None)  # of another cluster, it would go before the token's path
    return variables | {
        # `python` in a job is the one that runs this.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # Ray's way to say "only this machine": its inner ports are bound to 127.0.0.1 as well, and those on which the
        # workers of a training talk to each other.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray Train ends a run in order on SIGINT only, and Ray would kill the job after three seconds.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_SECONDS),
        # What multiprocessing and others leave behind goes with the cluster.
        "TMPDIR": cluster.temp_folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Seven more processes, for features of MLflow that nothing here uses.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _ray(cluster: Cluster) -> Service:
    command = (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        *("--port", str(cluster.ray_port)),
        *("--num-cpus", str(cpu_count())),  # Ray itself does not follow `taskset`, or the quota of a systemd unit
        *("--dashboard-host", HOST, "--dashboard-port", str(cluster.dashboard_port)),
        *("--dashboard-agent-listen-port", str(cluster.agent_port)),
        *("--ray-client-server-port", str(cluster.client_port)),
        # Any free port for workers: Ray's fixed range would collide with a second cluster's.
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--temp-dir", cluster.temp_folder),
    )
    return Service(
        name="Ray",
        url=f"http://{HOST}:{cluster.dashboard_port}",
        mark=f"{cluster.mark}.ray",
        command=command,
        leaves_daemons=True,
        # Ray gives its daemons 30 s to come up, which cannot be changed and is too short on a busy machine.
        attempts=3,
        answers=lambda: _ray_answers(cluster),
    )


def _mlflow(cluster: Cluster) -> Service:
    # Experiments name their artifacts by file path, so that a run is as well read without the server, from the same
    # SQLite file.
    artifacts = cluster.artifacts or (Path(cluster.project) / "mlartifacts").as_uri()
    state_folder = Path(cluster.project) / STATE_FOLDER
    variables: tuple[tuple[str, str], ...] = ()
    store = f"sqlite:///{cluster.project}/mlflow.db"
    if cluster.socket_folder:
        store = postgres.database_uri(cluster.socket_folder)
        variables = (("PGPASSFILE", str(postgres.password_file(state_folder))),)
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", HOST, "--port", str(cluster.mlflow_port)),
        *("--backend-store-uri", store),
        *("--default-artifact-root", artifacts, "--artifacts-destination", artifacts),
    )
    return Service(
        name="MLflow",
        url=f"http://{HOST}:{cluster.mlflow_port}",
        mark=f"{cluster.mark}.mlflow",
        command=command,
        leaves_daemons=False,
        attempts=1,
        answers=lambda: _get(cluster.mlflow_port, "/health"),
        variables=variables,
    )


def _postgres(cluster: Cluster) -> Service:
    installation = postgres.Installation(Path(cluster.postgres_binaries), cluster.postgres_user)
    return Service(
        name="PostgreSQL",
        url=postgres.database_uri(cluster.socket_folder),
        mark=f"{cluster.mark}.postgres",
        command=postgres.server_command(installation, Path(cluster.project) / STATE_FOLDER, cluster.socket_folder),
        leaves_daemons=False,
        # After its process was killed, others of it may hold the data for a moment.
        attempts=3,
        answers=lambda: postgres.is_ready(installation, cluster.socket_folder),
        user=installation.user,
        stop_signal=signal.SIGINT,  # on SIGTERM it waits until its clients have gone
    )


def _ray_answers(cluster: Cluster) -> bool:
    # The job server, the control store, and the agent that starts jobs; each only to our token.
    token = token_path(cluster.project).read_text()
    return (
        _get(cluster.dashboard_port, "/api/version", token)
        and _get(cluster.dashboard_port, "/api/gcs_healthz", token)
        and _get(cluster.agent_port, "/api/local_raylet_healthz", token)
    )


def _get(port: int, path: str, token: str | None = None) -> bool:
    # Not urllib: proxies of the environment must not come between us and 127.0.0.1.
    connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def port_is_free(port: int) -> bool:
    """Return True if a server could listen on `port` of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Return `count` different ports of 127.0.0.1 that are free."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
