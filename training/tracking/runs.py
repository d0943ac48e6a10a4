"""The runs of an MLflow store, one per training, and what lies in them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, Run
from mlflow.exceptions import MlflowException
from pyarrow.fs import FileSystem, copy_files

from errors import InputError
from training.checkpoint import PAGE
from training.tracking.client import describe, shown_uri, store_errors
from training.tracking.experiment import find_experiment
from training.tracking.settle import settle

CONFIG_NAME = "config.json"
"""Artifact of a run: its configuration, as it was requested."""
LAST_CHECKPOINT, BEST_CHECKPOINT = "checkpoint.last", "checkpoint.best"
"""Tags of a run: where in its storage these checkpoints lie, from the moment that they are complete."""
EPOCHS = "twotower.epochs"
"""Tag of a run: to how many epochs it is trained; its parameter keeps the number that it began with."""


def create_run(
    client: MlflowClient, experiment: str, name: str, params: dict[str, Any], config: dict[str, Any] | None = None
) -> str:
    """Create a run with its parameters and its configuration, and return its id.

    Raises:
        InputError: the store fails, or its artifacts cannot be written; then there is no run.
    """
    experiment_id = find_experiment(client, experiment).experiment_id
    with store_errors(client.tracking_uri):
        run_id: str = client.create_run(experiment_id, run_name=name).info.run_id
    try:
        with store_errors(client.tracking_uri):
            entries = [Param(key, str(value)) for key, value in params.items()]
            for start in range(0, len(entries), 100):
                client.log_batch(run_id, params=entries[start : start + 100])
        log_config(client, run_id, config or {})
    except InputError:
        with contextlib.suppress(Exception):  # the store may be away by now
            client.delete_run(run_id)
        raise
    return run_id


def log_config(client: MlflowClient, run_id: str, config: dict[str, Any]) -> None:
    """Keep a configuration, as JSON values, among the artifacts of the run.

    Raises:
        InputError: the artifacts cannot be written.
    """
    location = find_run(client, run_id).info.artifact_uri
    try:
        client.log_dict(run_id, config, CONFIG_NAME)
    except Exception as error:  # each kind of artifact store has exceptions of its own
        raise InputError(
            f"artifact store {location} cannot be written: {describe(error)}; "
            "make it writable, or use another --experiment"
        ) from error


def find_run(client: MlflowClient, run_id: str) -> Run:
    """Return a run; raise `InputError` if the store does not have it, or it was deleted."""
    with store_errors(client.tracking_uri):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            store = shown_uri(client.tracking_uri)
            raise InputError(f"run {run_id!r} is not in the MLflow store {store}") from error
    if run.info.lifecycle_stage == "deleted":
        raise InputError(f"run {run_id!r} was deleted; restore it with: mlflow runs restore --run-id {run_id}")
    return run


def run_page(client: MlflowClient, run_id: str) -> str | None:
    """Return the address of a run's page; None if the store is not a server that shows it, or does not answer."""
    uri = client.tracking_uri
    if not uri.startswith(("http://", "https://")):
        return None
    with contextlib.suppress(Exception):  # each kind of store has exceptions of its own
        return f"{uri.rstrip('/')}/#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}"
    return None


def fetch_artifact(client: MlflowClient, run_id: str, path: str, folder: Path) -> Path:
    """Copy an artifact folder of a run into `folder` and return its path; `InputError` without such a run or folder."""
    find_run(client, run_id)
    try:
        return Path(client.download_artifacts(run_id, path, str(folder)))
    except (MlflowException, OSError) as error:
        raise InputError(f"run {run_id!r} has no artifact {path}") from error
    except Exception as error:  # as in `log_config`
        raise InputError(f"artifact {path} of run {run_id!r} cannot be read: {describe(error)}") from error


def fetch_checkpoint(client: MlflowClient, run_id: str, which: str, folder: Path) -> Path:
    """Return a local folder with the `last` or `best` checkpoint of a run, copied into `folder` if it is elsewhere.

    The run is settled first, if nobody trains it any more.

    It is taken from the run's storage, where it lies from the moment that it is complete; where that is out of reach,
    from the run's artifacts, which it joins at the end of a training.

    Raises:
        InputError: there is no such run, or it has no such checkpoint.
    """
    tag = BEST_CHECKPOINT if which == "best" else LAST_CHECKPOINT
    with store_errors(client.tracking_uri):
        location = settle(client, find_run(client, run_id)).data.tags.get(tag)
    if location is not None:
        if Path(location, PAGE).is_file():
            return Path(location)
        with contextlib.suppress(OSError, ValueError):  # out of reach, or a path of another machine
            filesystem, path = FileSystem.from_uri(location)
            copy_files(path, str(folder), filesystem)
            return folder
    return fetch_artifact(client, run_id, f"checkpoints/{which}", folder)
