"""Slurm on the hosts of `hosts.py`: slurmctld on the head, slurmd on two hosts, with a munge of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from commands import PROJECT
from hosts import Host, Hosts, wait_until

COMMANDS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm"}
"""Commands that Slurm needs, with Debian's packages."""
_CONFIGURATION = """\
ClusterName=hosts
SlurmctldHost=head({head})
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
KillWait=10
SlurmdTimeout=30
NodeName=one NodeAddr={one} CPUs=2 CoresPerSocket=2
NodeName=two NodeAddr={two} CPUs=2 CoresPerSocket=2
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return which of Debian's packages is missing, in one line; None if none is."""
    for command, package in COMMANDS.items():
        if shutil.which(command) is None:
            return f"needs `{command}`, of Debian's package {package}"
    return None


class Slurm:
    """Slurm's daemons on the hosts; they end with them."""

    def __init__(self, hosts: Hosts) -> None:
        """Start the daemons, and wait until both nodes are idle."""
        self._hosts, self._folder = hosts, hosts.shared / "slurm"
        (self._folder / "state").mkdir(parents=True)
        addresses = {"head": hosts.head.address, "one": hosts.one.address, "two": hosts.two.address}
        self._configuration = self._folder / "slurm.conf"
        self._configuration.write_text(_CONFIGURATION.format(folder=self._folder, **addresses))
        (self._folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # which uses none, unlike v2
        self._start_munge()
        self._start(hosts.head, "slurmctld", "-D")
        for host in (hosts.one, hosts.two):
            self._start(host, "slurmd", "-D", "-N", host.name)
        wait_until(lambda: self.run("sinfo", "--noheader", "--format=%T").split() == ["idle"])

    def run(self, *command: object, cwd: Path = PROJECT, **variables: str) -> str:
        """Run one of Slurm's commands on the head; return its output, and fail if it fails."""
        return self._hosts.head.run(*command, cwd=cwd, SLURM_CONF=str(self._configuration), **variables)

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        shown = self.run("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def _start(self, host: Host, *command: str) -> None:
        host.start(*command, log=self._folder / f"{host.name}.log", SLURM_CONF=str(self._configuration))

    def _start_munge(self) -> None:
        key, socket = self._folder / "munge.key", self._folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}-file={self._folder / f'munge.{name}'}" for name in ("key", "log", "pid", "seed")]
        self._hosts.head.start("munged", "--foreground", "--force", f"--socket={socket}", *files)
        wait_until(socket.exists)
