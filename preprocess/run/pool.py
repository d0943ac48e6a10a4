"""A pool of processes with counters, a stop flag, and no process left behind.

`ProcessPoolExecutor` does the work: a worker that dies is an error, not a hang. Added: workers that end with their
parent even if it is killed, a flag that ends them between two images, and counters for the progress display.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_connection
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from interrupts import block_signals

Task = TypeVar("Task")
Result = TypeVar("Result")

_REFRESH_SECONDS = 0.2
_REASON_BYTES = 240
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

    def __add__(self, other: Counts) -> Counts:
        """Return the sums, with the first reasons of both."""
        return Counts(
            self.images + other.images,
            self.bytes + other.bytes,
            self.rejected + other.rejected,
            (self.reasons + other.reasons)[:REASONS_SHOWN],
        )


class WorkerDiedError(RuntimeError):
    """A worker process ended without a result: it was killed, or the machine ran out of memory."""


class StoppedError(Exception):
    """The parent wants no more work; raised in a worker."""


class _Reason(ctypes.Structure):
    _fields_ = (("text", ctypes.c_char * _REASON_BYTES),)


@dataclass(frozen=True)
class _Board:
    """Memory that parent and workers share, without locks: a worker that dies cannot hold one."""

    stop: Any
    images: Any
    bytes: Any
    rejected: Any
    reasons: Any

    @staticmethod
    def of(context: BaseContext, tasks: int) -> _Board:
        """Allocate a board with separate counters for every task."""
        images, size, rejected = (context.RawArray(ctypes.c_int64, tasks) for _ in range(3))
        return _Board(context.RawValue(ctypes.c_bool, False), images, size, rejected, context.RawArray(_Reason, tasks))

    def read(self) -> Counts:
        """Add up the counters of all tasks."""
        rejected = sum(self.rejected)
        reasons = itertools.islice((each.text for each in self.reasons if each.text), REASONS_SHOWN * bool(rejected))
        texts = tuple(reason.decode("utf-8", "ignore") for reason in reasons)
        return Counts(sum(self.images), sum(self.bytes), rejected, texts)


class Tally:
    """Counter of one task: it raises `StoppedError` when the work should end."""

    def __init__(self, board: _Board, task: int) -> None:
        """Count for task number `task`; no two tasks share a counter, so none needs a lock."""
        self._board = board
        self._task = task

    def count(self, images: int = 1, size: int = 0, rejected: str = "") -> None:
        """Add to the counters.

        Args:
            images: number of images; 0 for a part of one.
            size: bytes of input that were read for them.
            rejected: image and reason, if it was rejected.
        """
        if self._board.stop.value:
            raise StoppedError
        if rejected:
            if not self._board.rejected[self._task]:
                reason = rejected.encode("utf-8", "backslashreplace")
                self._board.reasons[self._task].text = reason[: _REASON_BYTES - 1]
            self._board.rejected[self._task] += 1
        self._board.bytes[self._task] += size
        self._board.images[self._task] += images


def run_tasks(
    function: Callable[[Task, Tally], Result],
    tasks: Sequence[Task],
    workers: int,
    show: Callable[[Counts], None],
    collect: Callable[[int, Result], None],
) -> None:
    """Compute `function(task, tally)` for each task in `workers` processes.

    Args:
        function: a module's function; it calls `tally.count()` after each image.
        tasks: anything that can be pickled.
        workers: number of processes, at most one for each task.
        show: called with the counts a few times a second, and once at the end.
        collect: called with a task's number and result as soon as it is ready, in any order.

    Raises:
        WorkerDiedError: a worker was killed.
        Exception: the first one that `function`, `show` or `collect` raised; all workers have ended by then.
    """
    context = multiprocessing.get_context("spawn")  # threads of the parent (BLAS, progress) make forks unsafe
    board = _Board.of(context, len(tasks))
    executor = ProcessPoolExecutor(min(workers, len(tasks)) or 1, context, initializer=_start_worker, initargs=(board,))
    try:
        numbers = _submit(executor, function, tasks)
        while numbers:
            finished, _ = wait(numbers, _REFRESH_SECONDS, FIRST_COMPLETED)
            show(board.read())
            for future in finished:
                collect(numbers.pop(future), future.result())
    except BrokenProcessPool:
        raise WorkerDiedError("a worker process died: it was killed, or memory ran out") from None
    finally:
        board.stop.value = True
        executor.shutdown(wait=True, cancel_futures=True)


def _submit(
    executor: ProcessPoolExecutor, function: Callable[[Task, Tally], Result], tasks: Sequence[Task]
) -> dict[Future[Result], int]:
    # One process per core is enough: OpenBLAS would start threads in each, which spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Submitting starts the workers. They inherit the blocked signals: Ctrl-C, which reaches every process of the
    # terminal's group, is handled by the parent, late by the time of a few spawns.
    with block_signals(signal.SIGINT, signal.SIGTERM):
        return {executor.submit(_run_task, function, number, task): number for number, task in enumerate(tasks)}


_board: _Board | None = None  # of this worker process


def _start_worker(board: _Board) -> None:
    global _board
    _board = board
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    gc.freeze()  # imported objects stay: the collector need not scan them
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_connection([parent.sentinel])
    os._exit(1)


def _run_task(function: Callable[[Task, Tally], Result], number: int, task: Task) -> Result:
    assert _board is not None
    return function(task, Tally(_board, number))
