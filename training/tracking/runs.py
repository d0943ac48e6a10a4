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
from training.tracking.client import SQLITE

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment whose runs the UI shows as trainings; without it they come up among evaluations of prompts."""
CONFIG_NAME = "config.json"
"""Artifact of a run: its configuration, as it was requested."""
LAST_CHECKPOINT, BEST_CHECKPOINT = "checkpoint.last", "checkpoint.best"
"""Tags of a run: where in its storage these checkpoints lie, from the moment that they are complete."""
EPOCHS = "twotower.epochs"
"""Tag of a run: to how many epochs it is trained; its parameter keeps the number that it began with."""


def create_run(client: MlflowClient, experiment: str, name: str, params: dict[str, Any]) -> str:
    """Create a run with its parameters and return its id.

    A SQLite store keeps artifacts in `mlartifacts/` next to its file; a server decides for itself.
    """
    if found := client.get_experiment_by_name(experiment):
        experiment_id = found.experiment_id
    else:
        uri, location = client.tracking_uri, None
        if uri.startswith(SQLITE):
            location = Path(uri.removeprefix(SQLITE)).with_name("mlartifacts").as_uri()
        experiment_id = client.create_experiment(experiment, artifact_location=location, tags=MODEL_TRAINING)
    run_id: str = client.create_run(experiment_id, run_name=name).info.run_id
    entries = [Param(key, str(value)) for key, value in params.items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run_id, params=entries[start : start + 100])
    return run_id


def find_run(client: MlflowClient, run_id: str) -> Run:
    """Return a run; raise `InputError` if the store does not have it."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        raise InputError(f"run {run_id!r} is not in the MLflow store {client.tracking_uri}") from error


def fetch_artifact(client: MlflowClient, run_id: str, path: str, folder: Path) -> Path:
    """Copy an artifact folder of a run into `folder` and return its path; `InputError` without such a run or folder."""
    find_run(client, run_id)
    try:
        return Path(client.download_artifacts(run_id, path, str(folder)))
    except (MlflowException, OSError) as error:
        raise InputError(f"run {run_id!r} has no artifact {path}") from error


def fetch_checkpoint(client: MlflowClient, run_id: str, which: str, folder: Path) -> Path:
    """Return a local folder with the `last` or `best` checkpoint of a run, copied into `folder` if it is elsewhere.

    It is taken from the run's storage, where it lies from the moment that it is complete; where that is out of reach,
    from the run's artifacts, which it joins at the end of a training.

    Raises:
        InputError: there is no such run, or it has no such checkpoint.
    """
    tag = BEST_CHECKPOINT if which == "best" else LAST_CHECKPOINT
    location = find_run(client, run_id).data.tags.get(tag)
    if location is not None:
        if Path(location, PAGE).is_file():
            return Path(location)
        with contextlib.suppress(OSError, ValueError):  # out of reach, or a path of another machine
            filesystem, path = FileSystem.from_uri(location)
            copy_files(path, str(folder), filesystem)
            return folder
    return fetch_artifact(client, run_id, f"checkpoints/{which}", folder)
