"""`python -m cluster.local up|down|status`: a Ray head and an MLflow server on 127.0.0.1.

The cluster belongs to the folder in which it is started, the project: jobs run there, `mlflow.db` and `mlartifacts/`
are there, and `.cluster/` holds its state. With `--postgres` MLflow's runs are in a PostgreSQL server of the project
instead, with its data in `.cluster/`. The output on stdout is for a shell:
`eval "$(python -m cluster.local up)"`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from atomic_files import atomic_write
from cluster import postgres
from cluster.processes import MARK_VARIABLE, find_family, stop_family
from cluster.services import (
    STATE_FOLDER,
    Cluster,
    Service,
    client_environment,
    free_ports,
    make_token,
    port_is_free,
    service_environment,
    services,
    token_path,
)
from command_line import CommandParser
from errors import InputError
from interrupts import Interrupted, block_signals, raise_on_signals

START_SECONDS = 300.0
"""Timeout for a service to answer; a busy machine needs more than a minute."""
SOCKET_FOLDER = "/tmp"
"""Ray's Unix sockets allow paths of 107 bytes: TMPDIR may be too long."""
LOG_LINES = 15
"""Lines of the log shown for a service that failed."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end this command."""
_POLL_SECONDS = 0.2


class StartError(RuntimeError):
    """A service did not start, or cannot be stopped; the message has the details."""


@dataclass(frozen=True)
class UpOptions:
    """The options of `up`."""

    dashboard_port: int
    ray_port: int
    mlflow_port: int
    postgres: bool
    artifacts: str


def up(project: Path, options: UpOptions) -> int:
    """Start the services in `project`, wait until they answer, print what to export; return 0.

    Raises:
        InputError: a port is in use, PostgreSQL is not installed, or what is up is another cluster than asked for.
        StartError: a service did not start; its processes are stopped.
    """
    with _only_one(project):
        cluster = _read_state(project)
        if cluster is not None and cluster.ready and all(_answering(cluster).values()):
            _check_the_same(cluster, options)
            _say("already up")
        else:
            if cluster is not None:
                _say("ending what an earlier start left behind")
                _stop(cluster)
            cluster = _plan(project, options)
            _start(cluster)
    _print_exports(cluster)
    return 0


def down(project: Path) -> int:
    """Stop everything that `up` and the jobs since have started; return 0."""
    with _only_one(project):
        cluster = _read_state(project)
        if cluster is None:
            _say("nothing is up")
            return 0
        _stop(cluster)
    _say("down")
    return 0


def status(project: Path) -> int:
    """Print the state of the services; return 0 if all answer, 1 otherwise."""
    cluster = _read_state(project)
    if cluster is None:
        _say("down; start it with: python -m cluster.local up")
        return 1
    answering = _answering(cluster)
    if cluster.ready and all(answering.values()):
        _print_exports(cluster)
        return 0
    for service, answers in answering.items():
        _say(f"{service.name} {'answers' if answers else 'does not answer'} at {service.url}")
    _say("not all is up; end what is left with: python -m cluster.local down")
    return 1


def _answering(cluster: Cluster) -> dict[Service, bool]:
    """Return for each service whether its own processes answer."""
    return {service: bool(find_family(service.mark)) and service.answers() for service in services(cluster)}


def _check_the_same(cluster: Cluster, options: UpOptions) -> None:
    """Raise `InputError` if the cluster that is up keeps runs or artifacts elsewhere than asked for."""
    different = {
        "--postgres": options.postgres and not cluster.socket_folder,
        f"--artifacts {options.artifacts}": options.artifacts not in ("", cluster.artifacts),
    }
    for option, differs in different.items():
        if differs:
            raise InputError(f"{option}: the cluster that is up was started without it; use cluster.local down first")


def _plan(project: Path, options: UpOptions) -> Cluster:
    chosen = {
        "--dashboard-port": options.dashboard_port,
        "--ray-port": options.ray_port,
        "--mlflow-port": options.mlflow_port,
    }
    if len(set(chosen.values())) < len(chosen):
        raise InputError(f"{', '.join(f'{option} {port}' for option, port in chosen.items())}: all must differ")
    for option, port in chosen.items():
        if not port_is_free(port):
            raise InputError(f"port {port} of 127.0.0.1 is in use; choose another with {option}")
    installation = postgres.find_installation() if options.postgres else None
    if installation is not None:
        postgres.prepare_data(installation, project / STATE_FOLDER)
    agent_port, client_port = free_ports(2)
    cluster = Cluster(
        project=str(project),
        mark=secrets.token_hex(16),
        dashboard_port=options.dashboard_port,
        ray_port=options.ray_port,
        mlflow_port=options.mlflow_port,
        agent_port=agent_port,
        client_port=client_port,
        temp_folder=tempfile.mkdtemp(prefix="twotower-", dir=SOCKET_FOLDER),
        artifacts=options.artifacts,
    )
    if installation is None:
        return cluster
    return replace(
        cluster,
        socket_folder=postgres.make_socket_folder(installation, SOCKET_FOLDER),
        postgres_binaries=str(installation.binaries),
        postgres_user=installation.user,
    )


def _start(cluster: Cluster) -> None:
    # The state comes first: `down` needs it, whatever happens to this process.
    _write_state(cluster)
    try:
        make_token(cluster.project)
        # One after the other: Ray's daemons have too little time already.
        for service in services(cluster):
            _start_service(cluster, service)
        _write_state(replace(cluster, ready=True))
    except BaseException:
        _stop(cluster)
        raise


def _start_service(cluster: Cluster, service: Service) -> None:
    """Start a service and return when it answers."""
    _say(f"starting {service.name}, which takes about half a minute")
    start = time.monotonic()
    for _ in range(service.attempts):
        command = _spawn(cluster, service)
        while (code := command.poll()) is None or (code == 0 and service.leaves_daemons):
            if service.answers():
                _say(f"{service.name} answers at {service.url} ({time.monotonic() - start:.0f} s)")
                return
            if time.monotonic() - start > START_SECONDS:
                raise StartError(f"{service.name} does not answer:\n{_log_end(cluster, service)}")
            time.sleep(_POLL_SECONDS)
        _say(f"{service.name} did not start")
        stop_family(service.mark, service.stop_signal)
    raise StartError(_log_end(cluster, service))


def _spawn(cluster: Cluster, service: Service) -> subprocess.Popen[bytes]:
    with _log(cluster, service).open("wb") as log:
        return subprocess.Popen(
            service.command,
            cwd=cluster.project,
            env=service_environment(cluster) | dict(service.variables) | {MARK_VARIABLE: service.mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: we end the service in order
            **postgres.as_user(service.user),
        )


def _stop(cluster: Cluster) -> None:
    """Stop all processes of the cluster and remove its state; signals wait until then, at most a minute."""
    with block_signals(*SIGNALS):
        # The jobs end first, while MLflow still takes what they log.
        ray, *others = services(cluster)
        for service in (ray, *reversed(others)):
            left = stop_family(service.mark, service.stop_signal)
            if left:
                raise StartError(f"{service.name} cannot be ended: {sorted(process.pid for process in left)} remain")
        shutil.rmtree(cluster.temp_folder, ignore_errors=True)
        if cluster.socket_folder:
            shutil.rmtree(cluster.socket_folder, ignore_errors=True)
        _state_path(cluster.project).unlink(missing_ok=True)


def _print_exports(cluster: Cluster) -> None:
    lines = [f"# {service.name:10} {service.url}" for service in services(cluster)]
    lines.append(f"# The token that Ray's dashboard asks for is in {token_path(cluster.project)}")
    # These would go before the ones below.
    lines += [f"unset {name}" for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN") if name in os.environ]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in client_environment(cluster).items()]
    print("\n".join(lines))
    if sys.stdout.isatty():
        _say('type these lines, or: eval "$(python -m cluster.local status)"')


@contextlib.contextmanager
def _only_one(project: Path) -> Iterator[None]:
    """Hold the project's lock; `InputError` if another command does."""
    folder = project / STATE_FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another `cluster.local` is at work in {project}; wait for it or interrupt it") from error
        yield


def _state_path(project: str | Path) -> Path:
    return Path(project) / STATE_FOLDER / "local.json"


def _read_state(project: Path) -> Cluster | None:
    path = _state_path(project)
    try:
        cluster = Cluster(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is not a cluster's state; remove it") from error
    if cluster.project != str(project):
        raise InputError(f"{path} is about a cluster of {cluster.project}: work on it there, or remove the file")
    return cluster


def _write_state(cluster: Cluster) -> None:
    atomic_write(_state_path(cluster.project), f"{json.dumps(asdict(cluster), indent=2)}\n".encode())


def _log(cluster: Cluster, service: Service) -> Path:
    return Path(cluster.project) / STATE_FOLDER / f"{service.name.lower()}.log"


def _log_end(cluster: Cluster, service: Service) -> str:
    path = _log(cluster, service)
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([*lines, f"({path})"])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _port(text: str) -> int:
    if not (text.isdecimal() and 1024 <= int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 1024 and 65535")
    return int(text)


def _artifacts(text: str) -> str:
    return text if "://" in text else Path(text).resolve().as_uri()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="python -m cluster.local", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True)
    starting = actions.add_parser("up", help="start a Ray head and an MLflow server in this folder")
    starting.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    starting.add_argument("--dashboard-port", type=_port, default=8265, help="Ray's dashboard and job server")
    starting.add_argument("--ray-port", type=_port, default=6379, help="Ray's control store")
    starting.add_argument("--mlflow-port", type=_port, default=5000, help="MLflow's server")
    starting.add_argument(
        "--postgres", action="store_true", help="keep MLflow's runs in a PostgreSQL server of this folder"
    )
    starting.add_argument(
        "--artifacts", type=_artifacts, default="", metavar="URI", help="folder or bucket of artifacts (s3://...)"
    )
    actions.add_parser("down", help="stop what up started, and the jobs on it")
    actions.add_parser("status", help="print the state: exit 0 if all is up, else 1")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one action in the working directory; return 0, 1 (failed, or not up), 2 (usage) or 128 + signal."""
    try:
        options = _parse(arguments)
        raise_on_signals(*SIGNALS)
        project = Path.cwd()
        if options.action == "up":
            ports = (options.dashboard_port, options.ray_port, options.mlflow_port)
            return up(project, UpOptions(*ports, postgres=options.postgres, artifacts=options.artifacts))
        return down(project) if options.action == "down" else status(project)
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except (StartError, OSError) as error:
        _say(f"error: {error}")
        return 1
    except Interrupted as interrupt:
        _say("interrupted")
        return interrupt.exit_code


if __name__ == "__main__":
    sys.exit(main())
