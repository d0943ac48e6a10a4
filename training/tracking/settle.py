"""The end of a run in MLflow: everything that it has not taken yet, and the state in which the training ended."""

from __future__ import annotations

import contextlib
import sys
import time

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from training.tracking.claim import HEARTBEAT, is_alive
from training.tracking.client import describe
from training.tracking.delivery import Delivery
from training.tracking.run_text import update_description
from training.tracking.spool import RunUpdate, Spool, count_points, has_storage, unsent_folder, writers

UNSETTLED = "twotower.unsettled"
"""Tag of a run that MLflow may not have all of: the storage in which the rest waits."""
STATE = "state"
"""Writer of the state in which a training ended."""


def finish(client: MlflowClient, run_id: str, storage: str, status: str) -> None:
    """Send what the workers have left behind, and end the run; if MLflow is away, say where all of it waits."""
    problem: Exception | None = None
    end = int(time.time() * 1000)
    try:
        deliver(client, run_id, storage)
    except Exception as error:  # of the store or of the storage: each kind has exceptions of its own
        problem = error
    try:
        client.set_terminated(run_id, status, end)
        update_description(client, run_id)
        if problem is None:
            client.delete_tag(run_id, UNSETTLED)
            return
    except Exception as error:
        problem = error
        with contextlib.suppress(OSError):
            Spool(storage, run_id, STATE).append(RunUpdate(status=status, end_time=end))
    waiting = "its state"
    with contextlib.suppress(OSError):
        waiting = f"its state and {count_points(storage, run_id)} points"
    print(
        f"warning: MLflow has not taken all of run {run_id} ({describe(problem)}): {waiting} wait in "
        f"{unsent_folder(storage, run_id)}; python -m training.runs sends them",
        file=sys.stderr,
        flush=True,
    )


def settle(client: MlflowClient, run: Run, moved_to: str | None = None) -> Run:
    """Return the run as it is; if the process that trained it is gone, send what it has left behind, and end the run.

    A run that counts as running, but has nobody who trains it, becomes KILLED.

    Args:
        client: of the store that has it.
        run: as the store has it.
        moved_to: storage of the run, if it is no longer where it was.
    """
    tags, run_id = run.data.tags, run.info.run_id
    if is_alive(tags) or not (UNSETTLED in tags or run.info.status == "RUNNING"):
        return run
    for storage in dict.fromkeys((tags.get(UNSETTLED), moved_to)):
        if storage is None:
            continue
        try:
            is_here = has_storage(storage, run_id)  # or is it the path of another machine?
            waiting = count_points(storage, run_id)
            deliver(client, run_id, storage)
        except OSError as error:
            print(f"warning: {unsent_folder(storage, run_id)} cannot be read: {describe(error)}", file=sys.stderr)
            continue
        if waiting:
            print(f"run {run_id}: MLflow has been given {waiting} points that had to wait", file=sys.stderr)
        if is_here:
            with contextlib.suppress(MlflowException):  # another command has settled it at the same time
                client.delete_tag(run_id, UNSETTLED)
            break
    if client.get_run(run_id).info.status == "RUNNING":
        heartbeat = tags.get(HEARTBEAT)
        client.set_terminated(run_id, "KILLED", None if heartbeat is None else int(1000 * float(heartbeat)))
    update_description(client, run_id)
    return client.get_run(run_id)


def deliver(client: MlflowClient, run_id: str, storage: str) -> None:
    """Send all that waits in the storage of a run; raise the store's error, or `OSError` of the storage."""
    delivery = Delivery(client, run_id)
    for writer in sorted(writers(storage, run_id), key=lambda writer: writer == STATE):
        delivery.send_all(Spool(storage, run_id, writer))
