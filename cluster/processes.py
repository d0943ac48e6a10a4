"""Families of processes: all descendants of one start, also those that left their parent and session.

Ray's daemons and jobs escape process ids and process groups, but inherit the environment, which /proc shows. A family
is every process with the same mark there; a process that was given a used process id has none.
"""

from __future__ import annotations

import contextlib
import signal
import time

import psutil

MARK_VARIABLE = "TWOTOWER_CLUSTER"
"""Environment variable that holds the mark of the family."""
GRACE_SECONDS = 10.0
"""Time in which a family may end by itself, and again after it was killed."""
_POLL_SECONDS = 0.1


def find_family(mark: str) -> dict[psutil.Process, str]:
    """Return the living processes (zombies left out) whose environment carries `mark`, with their names."""
    # The environment is None where the process ended just now, or is another user's.
    every = psutil.process_iter(["environ", "name"])
    return {one: one.info["name"] for one in every if (one.info["environ"] or {}).get(MARK_VARIABLE) == mark}


def stop_family(mark: str, stop_signal: signal.Signals = signal.SIGTERM) -> dict[psutil.Process, str]:
    """End all processes that carry `mark`, by `stop_signal`, then by SIGKILL; return those that remain."""
    asked: set[psutil.Process] = set()
    deadline = time.monotonic() + GRACE_SECONDS
    while (asking := _ends_when_asked(find_family(mark))) and time.monotonic() < deadline:
        _send(stop_signal, asking - asked)
        asked |= asking
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + GRACE_SECONDS
    while (family := find_family(mark)) and time.monotonic() < deadline:
        _send(signal.SIGKILL, set(family))
        time.sleep(_POLL_SECONDS)
    return family


def _ends_when_asked(family: dict[psutil.Process, str]) -> set[psutil.Process]:
    # Ray's other processes end cleanly only while its control store answers, and it keeps nothing on disk to lose.
    return {process for process, name in family.items() if name != "gcs_server"}


def _send(signum: int, processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):  # psutil refuses a process id that changed hands
            process.send_signal(signum)
