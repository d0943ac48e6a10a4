"""Hosts on one machine: network namespaces on a bridge, each with an address, a host name and a Ray of its own.

They share the machine's files, which stand for the file system that the hosts of a cluster share, and its cores.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from commands import PROJECT, documented_command

from cluster.processes import MARK_VARIABLE, find_family, stop_family

NETWORK = "10.77.0"
"""First three numbers of the addresses; the bridge is not connected to anything else."""
EXAMPLE = f"{NETWORK}.3"
"""Address of a worker host in docs/cluster.md."""
JOB_PORT, MLFLOW_PORT = 8265, 5000
WAIT_SECONDS = 600.0
START_ATTEMPTS = 3
"""Ray gives its daemons 30 s, which is too short on a busy machine."""
MACHINE_SETTINGS = {
    # Each Ray would count the memory that all others of the machine use, and give way to their processes.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
}
"""Of every Ray, where several are on a machine."""
HEALTH_SETTINGS = {
    # A host counts as lost after about 20 s without an answer, instead of about 65 s.
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    # A host that has lost the head ends what runs on it after so many seconds.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
"""Of the head and the hosts, as docs/cluster.md has them."""


def missing() -> str | None:
    """Return what this machine lacks for hosts of its own, in one line; None if nothing."""
    for command, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("mount", "mount")):
        if shutil.which(command) is None:
            return f"needs `{command}`, of Debian's package {package}"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    probe = f"tt-{os.getpid()}-p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return f"needs network namespaces: {made.stderr.strip()}" if made.returncode else None


def wait_until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Wait until a condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Host:
    """A network namespace, whose processes see a host name and a folder /tmp/ray of their own."""

    def __init__(self, name: str, number: int, bridge: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Make it, with address 10.77.0.`number`."""
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.namespace, self._link = f"{bridge}-{name}", f"{bridge}{number}"
        self.folder, self.environment = folder / name, {**environment, "HOME": str(folder / name)}
        self.folder.mkdir()
        # Ray's sockets must have short paths.
        self._ray_folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", self._link, "master", bridge, "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", interface, "up")

    def start(
        self, *command: object, log: Path | None = None, cwd: Path = PROJECT, **variables: str
    ) -> subprocess.Popen[str]:
        """Start a command on this host, by default in the project folder."""
        inside = 'mkdir -p /tmp/ray && mount --bind "$0" /tmp/ray && hostname "$1" && shift && exec "$@"'
        entry = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", inside]
        output = subprocess.PIPE if log is None else log.open("ab")
        return subprocess.Popen(
            [*entry, str(self._ray_folder), self.name, *map(str, command)],
            cwd=cwd,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output if log is not None else subprocess.PIPE,
            text=True,
        )

    def run(self, *command: object, timeout: float = WAIT_SECONDS, cwd: Path = PROJECT, **variables: str) -> str:
        """Run a command on this host; return stdout and stderr, and fail if it fails."""
        process = self.start(*command, cwd=cwd, **variables)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == 0, f"{command}\n{out}\n{err}"
        return out + err

    def set_link(self, state: str) -> None:
        """Take the link between this host and the others `down` or `up`."""
        _ip("link", "set", self._link, state)

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the processes of this host whose command line contains `name`."""
        own = Path("/run/netns", self.namespace).stat().st_ino
        found = []
        for process in find_family(self.environment[MARK_VARIABLE]):
            try:
                is_own = Path(f"/proc/{process.pid}/ns/net").stat().st_ino == own
                if is_own and name in " ".join(process.cmdline()):
                    found.append(process)
            except (OSError, psutil.Error):  # it has just ended
                continue
        return found

    def remove(self) -> None:
        """Remove the namespace, whose processes have ended, and Ray's folder."""
        _ip("netns", "delete", self.namespace)
        shutil.rmtree(self._ray_folder, ignore_errors=True)


@dataclass
class Job:
    """A job that was submitted, and is followed."""

    process: subprocess.Popen[str]
    log_file: Path

    @property
    def log(self) -> str:
        """The log so far."""
        return self.log_file.read_text(errors="replace")

    def result(self) -> str:
        """Wait for the job; return the log, and fail if it fails."""
        try:
            code = self.process.wait(WAIT_SECONDS)
        finally:
            self.process.kill()
        assert code == 0, self.log
        return self.log


class Hosts:
    """A head without cores, and worker hosts with two each; `shared` is the folder that all of them have."""

    def __init__(self, shared: Path, *, encrypted: bool = False) -> None:
        """Make the hosts, for TLS if `encrypted`; nothing runs on them yet."""
        self.shared, self._jobs, self._encrypted = shared, 0, encrypted
        self._mark, self._bridge = f"hosts-{os.getpid()}", f"tt{os.getpid()}"
        exports = [documented_command("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=")]
        if encrypted:
            exports += [documented_command(f"export {name}=") for name in ("RAY_USE_TLS", "MLFLOW_TRACKING_URI")]
        self._exports = self._shared("; ".join(exports))
        documented = dict(word.split("=", 1) for word in self._exports.replace(";", "").split() if word != "export")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment = {
            **kept,
            **HEALTH_SETTINGS,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            **MACHINE_SETTINGS,
            **documented,
            MARK_VARIABLE: self._mark,
        }
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        self.head, self.one, self.two = (
            Host(name, number, self._bridge, shared, environment)
            for number, name in enumerate(("head", "one", "two"), start=2)
        )

    def start(self) -> None:
        """Start Ray on all hosts, and the MLflow server on the head, as docs/cluster.md says."""
        if self._encrypted:  # as the first of all: the variables name its files
            self._type(self.head, "(umask 077 && openssl ").communicate()
        self._type(self.head, "(umask 077 && python ").communicate()
        certificate = self._shared("--uvicorn-opts '--ssl-certfile /data/tls.crt --ssl-keyfile /data/tls.key'")
        serving = f"--workers 1 {certificate if self._encrypted else ''}"
        self._type(self.head, "mlflow server --host ", serving, self.shared / "mlflow.log")
        self._start_ray(self.head, "ray start --head --node-ip-address ", f"--num-cpus 0 --dashboard-port {JOB_PORT}")
        for host in (self.one, self.two):
            self.join(host)
        self.head.run("python", "-c", _WAIT_FOR_MLFLOW, SSL_CERT_FILE=str(self.shared / "tls.crt"))

    def join(self, host: Host) -> None:
        """Start Ray on a worker host."""
        self._start_ray(host, "ray start --address ", "--num-cpus 2")

    def rejoin(self, host: Host) -> None:
        """Give a host its link back; as soon as the Ray that the head has given up is gone, start another one."""
        host.set_link("up")
        wait_until(lambda: not host.processes("raylet/raylet"))
        self._end_ray(host)
        self.join(host)

    def submit(self, *command: object, options: tuple[object, ...] = ()) -> Job:
        """Submit a command of the project as a job."""
        submit = ("ray", "job", "submit", *options, "--", "python", "-m", *command)
        return self.type_job(shlex.join(map(str, submit)))

    def type_job(self, command: str) -> Job:
        """Type a command about jobs on the head."""
        self._jobs += 1
        log = self.shared / f"job-{self._jobs}.log"
        address = f"http://127.0.0.1:{JOB_PORT}"
        return Job(self.head.start(*shlex.split(command), log=log, RAY_ADDRESS=address), log)

    def _start_ray(self, host: Host, command: str, options: str) -> None:
        for _ in range(START_ATTEMPTS):
            starting = self._type(host, command, options)
            out, err = starting.communicate(timeout=WAIT_SECONDS)
            if starting.returncode == 0:
                return
            self._end_ray(host)
        raise AssertionError(f"Ray does not start on {host.name}\n{out}\n{err}")

    def _end_ray(self, host: Host) -> None:
        """End what is left of Ray on a host, as `ray stop` would on all hosts, whose processes it sees."""
        for process in host.processes("ray"):
            process.kill()

    def _type(self, host: Host, beginning: str, options: str = "", log: Path | None = None) -> subprocess.Popen[str]:
        """Type the documented command that begins so, with the shared folder in place of /data."""
        command = self._shared(documented_command(beginning))
        command = command.replace(f"--node-ip-address {EXAMPLE}", f"--node-ip-address {host.address}")
        return host.start("bash", "-c", f"{self._exports}; {command} {options}", log=log)

    def _shared(self, command: str) -> str:
        return command.replace("/data/", f"{self.shared}/")

    def remove(self) -> None:
        """End everything that was started on the hosts, and remove them."""
        stop_family(self._mark)
        for host in (self.head, self.one, self.two):
            host.remove()
        _ip("link", "delete", self._bridge)


_WAIT_FOR_MLFLOW = """
import os, time, urllib.request
for attempt in range(600):
    try:
        urllib.request.urlopen(os.environ["MLFLOW_TRACKING_URI"] + "/health", timeout=1).close()
        break
    except OSError:
        time.sleep(0.2)
else:
    raise SystemExit("the MLflow server does not answer")
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
