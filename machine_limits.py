"""CPU and memory limits of this process, by the machine, its affinity mask and its control groups.

A container on 64 cores that may use two of them is told of 64 by `os.cpu_count`. Ray and joblib read the limits of the
outermost control group only, which is not that of a systemd unit or of a Slurm job.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_count() -> int:
    """Return the number of CPUs that this process may use, at least 1.

    It is the smallest of the affinity mask (`taskset`, Slurm, cpusets) and the quotas of the control groups (`docker
    --cpus`, the limits of Kubernetes, systemd's `CPUQuota`), rounded up.
    """
    return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *_cpu_quotas()])))


def available_memory() -> int:
    """Return the bytes that can still be allocated: of the machine, and under the limits of its control groups."""
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def _cpu_quotas() -> Iterator[float]:
    """Yield the number of CPUs that each control group allows, where it has a limit."""
    for group in _groups("cpu"):
        try:
            if (limit := group / "cpu.max").exists():  # version 2
                quota, period = limit.read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def _left_in_groups() -> Iterator[int]:
    """Yield the bytes that are left under the limit of each control group, where it has one."""
    for group in _groups("memory"):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),  # version 2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most = (group / limit).read_text().strip()
                used = int((group / usage).read_text())
                fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                if most != "max":
                    # The page cache counts as used, but gives way.
                    yield int(most) - used + int(fields.get(cached, 0))
            except (OSError, ValueError):
                continue


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those around it, of cgroup version 2 or 1.

    In a container the outermost folder is its own group, and the path in `MEMBERSHIP` may be that of the host.
    """
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        group = root / path.lstrip("/")
        while group != root:
            yield group
            group = group.parent
        yield root
