"""Ownership of a run: one process at a time trains it, and notes every few seconds in the run that it is alive."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping

import psutil
from mlflow import MlflowClient

from errors import InputError
from training.tracking.client import store_errors

OWNER, HEARTBEAT = "twotower.owner", "twotower.heartbeat"
"""Tags of a run: host, process id and a random word of the process that trains it, and when it was last alive."""
HEARTBEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0
"""After as long without a heartbeat, a process on another machine counts as dead."""
CLAIM_SECONDS = 2.0
"""Longest time between two processes that both find a run without an owner, and claim it."""


@contextlib.contextmanager
def claimed(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Make this process the one that trains the run, and keep up its heartbeat.

    Raises:
        InputError: another process trains the run, or has claimed it at the same moment.
    """
    with store_errors(client.tracking_uri):
        _claim(client, run_id)
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(client, run_id, stop), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(HEARTBEAT_SECONDS)  # it may be waiting for a server that is away
        with contextlib.suppress(Exception):  # the server may be away
            client.delete_tag(run_id, HEARTBEAT)


def _claim(client: MlflowClient, run_id: str) -> None:
    tags = client.get_run(run_id).data.tags
    check_unclaimed(run_id, tags)
    me = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:8]}"
    client.set_tag(run_id, HEARTBEAT, str(time.time()))
    client.set_tag(run_id, OWNER, me)
    if OWNER in tags:  # a new run has only one claimant
        time.sleep(CLAIM_SECONDS)
        owner = client.get_run(run_id).data.tags[OWNER]
        if owner != me:
            raise InputError(f"run {run_id} is being resumed by another process ({owner}); leave it to that one")


def check_unclaimed(run_id: str, tags: Mapping[str, str]) -> None:
    """Raise `InputError` if the tags of a run say that a living process trains it."""
    if is_alive(tags):
        host, pid, _ = tags[OWNER].split()
        raise InputError(f"run {run_id} is being trained by process {pid} on {host}; stop that one first, or wait")


def is_alive(tags: Mapping[str, str]) -> bool:
    """Tell whether the tags of a run say that a living process trains it."""
    if HEARTBEAT not in tags or OWNER not in tags:
        return False
    host, pid, _ = tags[OWNER].split()
    is_gone = host == socket.gethostname() and not psutil.pid_exists(int(pid))
    return not is_gone and time.time() - float(tags[HEARTBEAT]) < DEAD_SECONDS


def _beat(client: MlflowClient, run_id: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(Exception):  # the server may be away
            client.set_tag(run_id, HEARTBEAT, str(time.time()))
