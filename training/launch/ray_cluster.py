"""The Ray cluster of a training: the one that RAY_ADDRESS names, or one that is started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import ray

from errors import InputError
from interrupts import keep_sigterm_handler

ANSWER_SECONDS = 5.0
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
RAY_TRAIN_SETTINGS = {
    # Interval of Ray Train's health checks in seconds; the end of a training, and of a worker, waits for one.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # After as many seconds without an answer a worker counts as dead: it is stopped, or its machine cannot be reached.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    # Workers' lines reach the terminal through Ray's log monitor; Ray Train would log them a second time.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Keep freed activations in the process: otherwise each step waits for zeroed pages. Glibc ignores a threshold for
    # mapped blocks above 2^25, and would then map the loader's batches again each time.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
OWN_RAY_SETTINGS = {
    # It watches nodes that a cloud takes back, and costs a process on the cores that train.
    PREEMPTION_WATCHER: "0",
}
"""Additional settings of a Ray that is started for one training."""


@contextlib.contextmanager
def joined_ray() -> Iterator[None]:
    """Join the Ray cluster that RAY_ADDRESS names, as in every job, or start one on this machine; leave it at the end.

    A process that has joined one before stays in it. With address `auto`, Ray would also look for a head that was
    started here once, and wait in vain if it was killed.

    Raises:
        InputError: RAY_ADDRESS is of another kind, or no cluster answers there.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    for name, value in {**RAY_TRAIN_SETTINGS, **({} if address else OWN_RAY_SETTINGS)}.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    _check_address(address)
    if not address:  # it would say that a token protects this Ray
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    with keep_sigterm_handler():
        ray.init(address or "local", logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `InputError` for an address that Ray would try for minutes, without a word."""
    if address in ("", "auto", "local"):
        return
    otherwise = "or unset it to train on a Ray of its own"
    host, _, port = address.rpartition(":")
    if "/" in address or not (host and port.isdecimal()):
        jobs = "give a job server to `ray job submit -- python -m training.run ...`"
        raise InputError(f"RAY_ADDRESS is {address}: it is not HOST:PORT of a head; {jobs}, {otherwise}")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)
    except OSError as error:
        reason = f"no head answers there ({error.strerror or error})"
        raise InputError(f"RAY_ADDRESS is {address}: {reason}; start one, {otherwise}") from error
    if _is_web_server(connection):
        reason = "that is a web server, such as Ray's dashboard"
        raise InputError(f"RAY_ADDRESS is {address}: {reason}; use the head's port, {otherwise}")


def _is_web_server(connection: socket.socket) -> bool:
    with connection, contextlib.suppress(OSError):  # a head closes the connection, or keeps silent
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    return False
