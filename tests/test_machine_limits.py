"""CPUs and memory that this process may use, under an affinity mask and in control groups."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import PROJECT

import machine_limits
from machine_limits import available_memory, cpu_count

FILES = {
    "version 2": ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    "version 1": (
        *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
        "total_inactive_file",
    ),
}
MEMBERSHIPS = {"version 2": "0::/{group}\n", "version 1": "5:memory:/{group}\n4:cpu,cpuacct:/{group}\n0::/\n"}


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the control groups, which are empty."""
    monkeypatch.setattr(machine_limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine_limits, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)))
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def cpu_limit(version: str, group: str, quota: int) -> dict[str, str]:
    if version == "version 2":
        return {f"{group}/cpu.max": f"{quota} 100000\n"}
    return {f"cpu/{group}/cpu.cfs_quota_us": f"{quota}\n", f"cpu/{group}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize("version", MEMBERSHIPS)
def test_the_smallest_quota_of_the_groups_around_the_process_counts(version: str, groups: Path) -> None:
    write(groups, {"membership": MEMBERSHIPS[version].format(group="slurm/job_1/step")})
    assert cpu_count() == 64, "no limit"
    write(groups, cpu_limit(version, "slurm/job_1", 350_000))
    assert cpu_count() == 4, "a part of a CPU is one"
    write(groups, cpu_limit(version, "slurm/job_1/step", 1_000_000))
    assert cpu_count() == 4, "the group around it is smaller"
    write(groups, cpu_limit(version, "slurm/other", 100_000))
    assert cpu_count() == 4, "not the limit of a neighbour"
    write(groups, cpu_limit(version, ".", 20_000))
    assert cpu_count() == 1


@pytest.mark.parametrize("version", MEMBERSHIPS)
def test_a_container_that_sees_only_its_own_group_is_limited_by_it(version: str, groups: Path) -> None:
    write(groups, {"membership": MEMBERSHIPS[version].format(group="docker/0123")})
    write(groups, cpu_limit(version, ".", 200_000))
    assert cpu_count() == 2


def test_without_a_limit_the_affinity_mask_counts(groups: Path) -> None:
    assert cpu_count() == 64, "no control groups"
    write(groups, {"membership": "0::/\n", "cpu.max": "max 100000\n"})
    assert cpu_count() == 64
    write(groups, {"membership": "4:cpu:/\n", **cpu_limit("version 1", ".", -1)})
    assert cpu_count() == 64


@pytest.mark.parametrize("version", FILES)
def test_a_limit_of_memory_counts_less_what_is_used_but_for_the_page_cache(version: str, groups: Path) -> None:
    whole = psutil.virtual_memory().available
    limit, usage, stat, cached = FILES[version]
    write(groups, {"membership": MEMBERSHIPS[version].format(group="")})
    write(groups, {limit: "1000000", usage: "400000", stat: f"anon 300000\n{cached} 100000\n"})
    assert available_memory() == 700_000
    write(groups, {limit: "max" if version == "version 2" else str(2**62)})
    assert available_memory() > whole / 2


COUNT = "from machine_limits import cpu_count; print(cpu_count())"


def test_the_mask_of_taskset_counts() -> None:
    first = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(first), sys.executable, "-c", COUNT]
    assert subprocess.run(command, cwd=PROJECT, check=True, capture_output=True).stdout == b"1\n"


@pytest.fixture
def group_of_one_cpu() -> Iterator[Path]:
    """Make a control group of this machine that may use one CPU."""
    for root, limit in ((Path("/sys/fs/cgroup"), "cpu.max"), (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us")):
        group = root / f"twotower-test-{os.getpid()}"
        if not (root / "cgroup.procs").exists():  # a folder of another file system
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text("100000")  # microseconds of each 100,000
            yield group
        except OSError:
            continue
        else:
            return
        finally:
            group.rmdir()
    pytest.skip("this process may not make control groups")


def test_the_quota_of_a_real_control_group_counts(group_of_one_cpu: Path) -> None:
    enter = f"open('{group_of_one_cpu}/cgroup.procs', 'w').write('0')"
    command = [sys.executable, "-c", f"{enter}\n{COUNT}"]
    assert subprocess.run(command, cwd=PROJECT, check=True, capture_output=True).stdout == b"1\n"
