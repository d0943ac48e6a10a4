"""Failures of workers: one line for each, and no second try where it would fail again."""

from __future__ import annotations

import sys
from typing import Any

import torch
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from errors import InputError
from training.loop.meter import DivergenceError

_TRACEBACK = "Traceback (most recent call last)"
"""In the text of an exception that the training raised; not in that of a process that died."""
_OUT_OF_MEMORY = "use a smaller --batch-size, or more --micro-batches"


class FinalError(RuntimeError):
    """The training would fail again in the same way."""


class RestartError(RuntimeError):
    """A worker was asked to end; others go on from the checkpoint that it has saved."""


def final_reason(error: Exception) -> str | None:
    """Return the reason to give up if a worker's exception would come again; None if another try may help."""
    if isinstance(error, InputError | DivergenceError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{_first_line(error) or 'out of memory'}; {_OUT_OF_MEMORY}"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return f"{_first_line(error)}; {_OUT_OF_MEMORY}"
    return None


class FailureReport(UserCallback):
    """Prints why workers have failed, and ends a training that would fail again."""

    def __init__(self, max_failures: int) -> None:
        self._left = max_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Print the failures of one attempt; called by Ray Train in its controller.

        Raises:
            FinalError: Ray Train must not try again.
        """
        for error in worker_exceptions.values():
            _, is_final, reason = str(error).partition(f"{FinalError.__qualname__}: ")
            if is_final:
                raise FinalError(reason.strip())
        rank = _failed_first(worker_exceptions)
        text = str(worker_exceptions[rank]).strip()
        if _TRACEBACK in text and RestartError.__qualname__ not in text:
            print(text, file=sys.stderr)
        goes_on = f"restarting from the newest checkpoint, {self._left} restarts left" if self._left else "giving up"
        print(f"{summary(worker_exceptions)}; {goes_on}", file=sys.stderr, flush=True)
        self._left -= 1


def failure_reason(error: TrainingFailedError) -> str:
    """Return one line that says why Ray Train has given up."""
    if isinstance(error, WorkerGroupError):
        return summary(error.worker_failures)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return str(cause) if isinstance(cause, FinalError) else f"Ray Train failed: {_last_line(cause)}"


def summary(worker_exceptions: dict[int, Exception]) -> str:
    """Return one line about the worker that failed first."""
    rank = _failed_first(worker_exceptions)
    error = worker_exceptions[rank]
    text = _last_line(error) if _TRACEBACK in str(error) else f"died ({_first_line(error)})"
    return f"worker {rank} {text.removeprefix(RestartError.__module__).removeprefix('.RestartError: ')}"


def _failed_first(worker_exceptions: dict[int, Exception]) -> int:
    # Where a process dies, its peers raise an exception about their connection to it.
    return min(worker_exceptions, key=lambda rank: (_TRACEBACK in str(worker_exceptions[rank]), rank))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
