"""The Ray cluster of a training: the one that RAY_ADDRESS names, or one that is started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import ray
import torch

from errors import InputError
from interrupts import keep_sigterm_handler
from machine_limits import cpu_count
from training.launch.ray_environment import set_ray_environment, starts_own_ray

ANSWER_SECONDS = 5.0


def own_resources() -> dict[str, float]:
    """Return the resources of the Ray that a training starts: the CPUs and GPUs that this process may use."""
    return {"CPU": cpu_count(), "GPU": torch.cuda.device_count()}


@contextlib.contextmanager
def joined_ray() -> Iterator[None]:
    """Join the Ray cluster that RAY_ADDRESS names, as in every job, or start one on this machine; leave it at the end.

    A process that has joined one before stays in it. With address `auto`, Ray would also look for a head that was
    started here once, and wait in vain if it was killed.

    Raises:
        InputError: RAY_ADDRESS is of another kind, or no cluster answers there.
    """
    set_ray_environment()
    if ray.is_initialized():
        yield
        return
    with keep_sigterm_handler():
        if starts_own_ray():
            _start_ray()
        else:
            address = os.environ["RAY_ADDRESS"]
            _check_address(address)
            ray.init(address, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray() -> None:
    # It would say that a token protects this Ray.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    available = own_resources()
    ray.init(
        "local",
        num_cpus=int(available["CPU"]),
        num_gpus=int(available["GPU"]),
        include_dashboard=False,  # eleven processes, and the port that `cluster.local` asks for
        logging_level=logging.WARNING,
    )


def _check_address(address: str) -> None:
    """Raise `InputError` for an address that Ray would try for minutes, without a word."""
    if address == "auto":
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
