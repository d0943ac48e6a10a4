"""A pool of processes with counters, a stop flag, and no process left behind.

`ProcessPoolExecutor` does the work: a worker that dies is an error, not a hang. Added: workers that end with their
parent even if it is killed, a flag that ends them between two images, and counters for the progress display.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_connection
from typing import Any, TypeVar

from interrupts import block_signals

Task = TypeVar("Task")
Result = TypeVar("Result")

_REFRESH_SECONDS = 0.2
_REASON_BYTES = 240
_KIND_BYTES = 128
_KINDS = 12  # of a task; further ones are counted together
OTHER_KINDS = "other reasons"
REASONS_SHOWN = 3


@dataclass(frozen=True)
class Counts:
    """Sums of the counters of all tasks."""

    images: int = 0
    bytes: int = 0
    """Of input."""
    rejected: int = 0
    reasons: tuple[str, ...] = ()
    """Image and reason of some of the first rejections."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Number of rejections by kind of reason."""


class WorkerDiedError(RuntimeError):
    """A worker process ended without a result: it was killed, or the machine ran out of memory."""


class StoppedError(Exception):
    """The parent wants no more work; raised in a worker."""


class _KindCount(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_char * _KIND_BYTES), ("count", ctypes.c_int64))


class TaskCounts(ctypes.Structure):
    """Counters of one task, which parent and worker share without a lock: a worker that dies cannot hold one."""

    _fields_ = (
        ("images", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("rejected", ctypes.c_int64),
        ("reason", ctypes.c_char * _REASON_BYTES),  # of the first rejection
        ("kinds", _KindCount * _KINDS),
    )


def add_up(tasks: Iterable[Any]) -> Counts:
    """Add up the `TaskCounts` of several tasks, running or finished."""
    images = size = rejected = 0
    reasons: list[str] = []
    kinds: Counter[str] = Counter()
    for task in tasks:
        images, size, rejected = images + task.images, size + task.bytes, rejected + task.rejected
        if task.rejected and len(reasons) < REASONS_SHOWN:
            reasons.append(task.reason.decode("utf-8", "ignore"))
        if task.rejected:
            kinds.update({entry.kind.decode("utf-8", "ignore"): entry.count for entry in task.kinds if entry.count})
    return Counts(images, size, rejected, tuple(reasons), kinds)


class Tally:
    """Counter of one task: it raises `StoppedError` when the work should end."""

    def __init__(self, counts: Any, stop: Any) -> None:
        """Count in a `TaskCounts` of its own until the value of `stop`, a ctypes bool, is true."""
        self._counts = counts
        self._stop = stop

    def count(self, images: int = 1, size: int = 0, rejected: str = "", kind: str = OTHER_KINDS) -> None:
        """Add images (0 for a part of one), `size` bytes of input, and a rejection: its image and reason, its kind."""
        if self._stop.value:
            raise StoppedError
        if rejected:
            if not self._counts.rejected:
                self._counts.reason = rejected.encode("utf-8", "backslashreplace")[: _REASON_BYTES - 1]
            self._counts.rejected += 1
            self._count_kind(kind.encode("utf-8", "backslashreplace")[: _KIND_BYTES - 1])
        self._counts.bytes += size
        self._counts.images += images

    def _count_kind(self, kind: bytes) -> None:
        for number, entry in enumerate(self._counts.kinds):
            if not entry.count:
                entry.kind = kind if number < _KINDS - 1 else OTHER_KINDS.encode()
            if number == _KINDS - 1 or entry.kind == kind:
                entry.count += 1
                return


def run_tasks(
    function: Callable[[Task, Tally], Result],
    tasks: Sequence[Task],
    workers: int,
    show: Callable[[Counts], None],
) -> list[Result]:
    """Compute `function(task, tally)` for each task in `workers` processes; return the results in order.

    Args:
        function: a module's function; it calls `tally.count()` after each image.
        tasks: anything that can be pickled.
        workers: number of processes, at most one for each task.
        show: called with the counts a few times a second, and once at the end.

    Raises:
        WorkerDiedError: a worker was killed.
        Exception: the first one that `function` or `show` raised; all workers have ended by then.
    """
    context = multiprocessing.get_context("spawn")  # threads of the parent (BLAS, progress) make forks unsafe
    counts, stop = context.RawArray(TaskCounts, len(tasks)), context.RawValue(ctypes.c_bool, False)
    executor = ProcessPoolExecutor(min(workers, len(tasks)) or 1, context, _start_worker, (counts, stop))
    try:
        futures = _submit(executor, function, tasks)
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, _REFRESH_SECONDS, FIRST_COMPLETED)
            show(add_up(counts))
            for future in finished:
                future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise WorkerDiedError("a worker process died: it was killed, or memory ran out") from None
    finally:
        stop.value = True
        executor.shutdown(wait=True, cancel_futures=True)


def _submit(
    executor: ProcessPoolExecutor, function: Callable[[Task, Tally], Result], tasks: Sequence[Task]
) -> list[Future[Result]]:
    # One process per core is enough: OpenBLAS would start threads in each, which spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Submitting starts the workers. They inherit the blocked signals: Ctrl-C, which reaches every process of the
    # terminal's group, is handled by the parent, late by the time of a few spawns.
    with block_signals(signal.SIGINT, signal.SIGTERM):
        return [executor.submit(_run_task, function, number, task) for number, task in enumerate(tasks)]


_shared: tuple[Any, Any] | None = None  # of this worker process: the counts of all tasks, and the stop flag


def _start_worker(counts: Any, stop: Any) -> None:
    global _shared
    _shared = counts, stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    gc.freeze()  # imported objects stay: the collector need not scan them
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_connection([parent.sentinel])
    os._exit(1)


def _run_task(function: Callable[[Task, Tally], Result], number: int, task: Task) -> Result:
    assert _shared is not None
    counts, stop = _shared
    return function(task, Tally(counts[number], stop))
