"""The pool over all nodes of a Ray cluster: when a node dies, its tasks run again on the others.

Every node must find the input and output folders under the same path.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from errors import InputError
from interrupts import defer_signals, keep_sigterm_handler
from preprocess.run.pool import Counts, Result, Tally, Task, TaskCounts, WorkerDiedError, add_up

_ATTEMPTS = 6  # of one task: nodes may die now and then, but an image that kills every worker must end the build
_IN_FLIGHT = 2  # tasks for each core: the next one waits at the node, and the queue stays short
_REFRESH_SECONDS = 0.5
_LOST_SECONDS = 10.0  # after a node's death: by then Ray has noticed, or will not for minutes
_CANCEL_SECONDS = 20.0
_ANSWER_SECONDS = 5.0


def run_tasks_on_ray(
    function: Callable[[Task, Tally], Result],
    tasks: Sequence[Task],
    address: str,
    show: Callable[[Counts], None],
) -> list[Result]:
    """Compute `function(task, tally)` for each task as `pool.run_tasks` does, with one core of a cluster each.

    A task that was lost with its node is computed again. `address` is `auto` for the cluster of this machine or job,
    or `HOST:PORT` of its head. `show` is called with the counts of finished tasks.

    Raises:
        InputError: there is no cluster at `address`, or one of its nodes cannot load a task.
        WorkerDiedError: a task lost its worker `_ATTEMPTS` times.
        Exception: the first one that `function` or `show` raised.
    """
    # If a handler raises in the middle of a call, Ray hangs, aborts, or raises SystemError.
    with defer_signals() as hand_over_signals, _joined(address):
        submissions = _Submissions(function, tasks)
        waiting = iter(range(len(tasks)))
        results: dict[int, Result] = {}
        finished: list[TaskCounts] = []
        try:
            while True:
                # Asked each time: nodes come and go.
                room = int(_IN_FLIGHT * ray.cluster_resources().get("CPU", 1)) - len(submissions.running)
                for waiting_number in itertools.islice(waiting, max(0, room)):
                    submissions.submit(waiting_number)
                if not submissions.running:
                    break
                submissions.repeat_lost()
                done, _ = ray.wait(list(submissions.running), timeout=_REFRESH_SECONDS)
                for reference in done:
                    if (first := submissions.finish(reference)) is not None:
                        results[first], counts = _result(reference, address)
                        finished.append(counts)
                show(add_up(finished))
                hand_over_signals()
        finally:
            _cancel([*submissions.running, *submissions.superseded])
    return [results[number] for number in range(len(tasks))]


class _Submissions:
    """The tasks that have been submitted and are not finished; one may be submitted twice."""

    def __init__(self, function: Callable[[Task, Tally], Result], tasks: Sequence[Task]) -> None:
        self._compute: Any = ray.remote(_compute).options(max_retries=_ATTEMPTS - 1, scheduling_strategy="SPREAD")
        self._function, self._tasks = function, tasks
        self._dead = _dead_nodes()
        self._suspects: list[tuple[float, set[int]]] = []
        self.running: dict[Any, int] = {}
        """The number of a task, by what Ray returns for it."""
        self.superseded: list[Any] = []
        """What Ray has returned for tasks whose other submission has finished first."""

    def submit(self, number: int) -> None:
        self.running[self._compute.remote(self._function, self._tasks[number])] = number

    def finish(self, reference: Any) -> int | None:
        """Forget a task that has finished; return its number, or None if it had finished before."""
        number = self.running.pop(reference, None)
        others = [other for other, its_number in self.running.items() if its_number == number]
        for other in others:
            del self.running[other]
        self.superseded += others
        return number

    def repeat_lost(self) -> None:
        """Some time after a node has died, submit the tasks again that have not been finished since.

        Ray runs a task again whose connection is closed. To a host that cannot be reached it stays open, for minutes
        after the cluster has given the node up.
        """
        now, dead = time.monotonic(), _dead_nodes()
        if dead - self._dead:
            self._suspects.append((now + _LOST_SECONDS, set(self.running.values())))
        self._dead |= dead
        while self._suspects and self._suspects[0][0] <= now:
            for number in self._suspects.pop(0)[1] & set(self.running.values()):
                self.submit(number)


def _dead_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _compute(function: Callable[[Task, Tally], Result], task: Task) -> tuple[Result, TaskCounts]:
    counts = TaskCounts()
    return function(task, Tally(counts, ctypes.c_bool(False))), counts


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    joined_before = ray.is_initialized()
    try:
        if not joined_before:
            _check_address(os.environ.get("RAY_ADDRESS") or address if address == "auto" else address)
        with keep_sigterm_handler():
            ray.init(address=address, ignore_reinit_error=True, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(getattr(error, "strerror", None) or error).split(". ")[0]
        raise InputError(
            f"--ray {address}: cannot join a Ray cluster ({reason}); use `auto` where one runs, or "
            "HOST:PORT of its head"
        ) from error
    try:
        yield
    finally:
        if not joined_before:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `ValueError` unless it is `auto` or `HOST:PORT`, `OSError` if nobody listens there.

    Ray would start a cluster for `local`, send tasks without their code for `ray://`, and retry for minutes.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in address:
        raise ValueError(f"{address!r} is not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()


def _result(reference: Any, address: str) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RayError):
            raise InputError(
                f"--ray {address}: a node cannot load its task ({str(error.cause).splitlines()[0]}): every node needs "
                "this project under the same path, or a job that brings it along"
            ) from error
        # The exception of the function, without the traceback of the other process.
        raise error.cause from None
    except RayError as error:
        raise WorkerDiedError(f"a task lost its worker {_ATTEMPTS} times: {str(error).splitlines()[0]}") from error


def _cancel(references: Sequence[Any]) -> None:
    """End the running tasks, so that nothing writes when the caller cleans up."""
    if not references:
        return
    # Cancelling a task that has just ended may abort this process.
    _, running = ray.wait(list(references), num_returns=len(references), timeout=0)
    for reference in running:
        ray.cancel(reference, force=True)
    ray.wait(list(references), num_returns=len(references), timeout=_CANCEL_SECONDS)
