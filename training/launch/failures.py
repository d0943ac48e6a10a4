"""Failures of workers: one line for each, and no second try where it would fail again."""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from errors import InputError
from object_store import StoreError
from pipeline.reading.samples import SampleError
from training.launch.interfaces import PeerError
from training.loop.meter import DivergenceError

_BAD_SAMPLE = (
    "use --on-bad-sample skip, or build the shards again; all bad samples: "
    "python -m preprocess.build_shards --output DIR --verify --deep"
)
_OUT_OF_MEMORY = "use a smaller --batch-size, or more --micro-batches"


class FinalError(RuntimeError):
    """The training would fail again in the same way."""


class RestartError(RuntimeError):
    """A worker was asked to end; others go on from the checkpoint that it has saved."""


def final_reason(error: Exception) -> str | None:
    """Return the reason to give up if a worker's exception would come again; None if another try may help."""
    if isinstance(error, SampleError):
        return f"{error}; {_BAD_SAMPLE}"
    if isinstance(error, StoreError) and error.is_transient:
        return None
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
        self._restarts, self._most = 0, max_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Print the failures of one attempt; called by Ray Train in its controller.

        Raises:
            FinalError: Ray Train must not try again.
        """
        for error in worker_exceptions.values():
            if isinstance(error, FinalError):
                raise error
        self._restarts += 1
        goes_on = f"restarting from the newest checkpoint ({self._restarts} of {self._most})"
        goes_on = "giving up" if self._restarts > self._most else goes_on
        print(f"{summary(worker_exceptions)}; {goes_on}", file=sys.stderr, flush=True)


def failure_reason(error: TrainingFailedError) -> str:
    """Return one line that says why Ray Train has given up."""
    if isinstance(error, WorkerGroupError):
        return summary(error.worker_failures)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return str(cause) if isinstance(cause, FinalError) else f"Ray Train failed: {_first_line(cause)}"


def controller_failure(error: Exception) -> str:
    """Return one line about the death of Ray Train's controller, which runs beside the command."""
    return f"Ray Train's controller has died: {_first_line(error)}; use --resume"


def summary(worker_exceptions: dict[int, Exception]) -> str:
    """Return one line about the worker that failed first."""
    causes = {rank: error for rank, error in worker_exceptions.items() if not is_lost_connection(error)}
    rank, error = min((causes or worker_exceptions).items(), key=lambda item: (not _is_of_ray(item[1]), item[0]))
    if isinstance(error, RestartError):
        return f"worker {rank} {error}"
    if not _is_of_ray(error):
        return f"worker {rank} failed with {type(error).__name__}: {_first_line(error)}"
    pid, node = (re.search(form, str(error)) for form in (r"\bpid\W+(\d+)", r"\b(?:node_)?ip\W+([\w.:]+)"))
    process = f" (process {pid[1]} on {node[1]})" if pid and node else ""
    state = "does not answer: it is stopped, or out of reach" if "hanging" in _first_line(error) else "died"
    return f"worker {rank}{process} {state}"


def says_where(error: Exception) -> bool:
    """Tell whether a worker's exception needs no traceback: it is about a connection, not about the code."""
    return is_lost_connection(error) or isinstance(error, PeerError)


def is_lost_connection(error: Exception) -> bool:
    """Tell whether an exception is about the connection to a peer, which has died or failed first."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport/" in str(error)


def _is_of_ray(error: Exception) -> bool:
    """Tell whether Ray has found a process dead or silent; other exceptions are the training's own."""
    return type(error).__module__.partition(".")[0] == "ray"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
