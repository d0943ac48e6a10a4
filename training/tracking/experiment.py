"""The MLflow experiment of a training, and the place of its artifacts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from errors import InputError
from training.tracking.client import sqlite_file, store_errors

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment whose runs the UI shows as trainings; without it they come up among evaluations of prompts."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def find_experiment(client: MlflowClient, name: str) -> Experiment:
    """Return the experiment of this name; create it, or restore it if it was deleted.

    A SQLite store keeps artifacts in `mlartifacts/` next to its file; a server decides for itself.

    Raises:
        InputError: the store fails, or the artifacts would lie on another machine.
    """
    with store_errors(client.tracking_uri):
        experiment = client.get_experiment_by_name(name) or _create(client, name)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            print(f"experiment {name!r} had been deleted in MLflow: it is restored, with its runs", flush=True)
    check_artifact_location(experiment.artifact_location, client.tracking_uri)
    return experiment


def check_artifact_location(location: str, tracking_uri: str) -> None:
    """Raise `InputError` if artifacts at `location` would be written where the server cannot read them.

    A server without `--artifacts-destination` gives its clients a path of its own machine. On another machine, MLflow
    would create it there, without a word.
    """
    server, artifacts = urlsplit(tracking_uri), urlsplit(location)
    if server.scheme not in ("http", "https") or server.hostname in LOCAL_HOSTS:
        return
    path = Path(unquote(artifacts.path))
    if artifacts.scheme in ("", "file") and not path.is_dir() and not path.parent.is_dir():
        raise InputError(
            f"the artifacts of MLflow server {server.hostname} are at {location}: this machine has no such folder; "
            "start the server with --artifacts-destination, or mount the folder here"
        )


def _create(client: MlflowClient, name: str) -> Experiment:
    file, location = sqlite_file(client.tracking_uri), None
    if file is not None:
        location = file.with_name("mlartifacts").as_uri()
    try:
        client.create_experiment(name, artifact_location=location, tags=MODEL_TRAINING)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
            raise
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return experiment
