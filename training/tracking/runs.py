"""The runs of an MLflow store, one per training, and what lies in them."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, Run
from mlflow.exceptions import MlflowException
from pyarrow.fs import copy_files

from errors import InputError
from object_store import open_filesystem
from preprocess.manifest import read_manifest
from training.checkpoint import PAGE
from training.config import Config
from training.tracking.client import describe, shown_uri, store_errors, without_credentials
from training.tracking.experiment import find_experiment
from training.tracking.run_text import EPOCHS, numbered, page_path, run_name, update_description
from training.tracking.settle import UNSETTLED, settle
from training.tracking.source import COMMAND, command, dataset_inputs, source_tags
from typed_json import to_json_values

CONFIG_NAME = "config.json"
"""Artifact of a run: its configuration, as it was requested."""
UI_ADDRESS = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves."""
PARAMS_LIMIT = 100
"""Parameters that MLflow takes in one request."""
LAST_CHECKPOINT, BEST_CHECKPOINT = "checkpoint.last", "checkpoint.best"
"""Tags of a run: where in its storage these checkpoints lie, from the moment that they are complete."""
STUDY = "twotower.study"
"""Tag of the parent run of an ablation study: the digest of all that makes it this study."""


def start_run(client: MlflowClient, config: Config, params: dict[str, Any], project: Path) -> str:
    """Create the run of a training in the folder `project` and return its id.

    Raises:
        InputError: the store fails, or its artifacts cannot be written; then there is no run.
    """
    experiment_id = find_experiment(client, config.experiment).experiment_id
    with store_errors(client.tracking_uri):
        name = config.run_name
        if name is None:
            name = numbered(client, experiment_id, run_name(config, read_manifest(config.data).name))
    run_id = create_run(client, config.experiment, name, params, {**source_tags(project), **config.tags})
    try:
        with store_errors(client.tracking_uri):
            client.log_inputs(run_id, datasets=dataset_inputs(config.data))
        log_config(client, run_id, config)
    except InputError:
        with contextlib.suppress(Exception):  # the store may be away by now
            client.delete_run(run_id)
        raise
    return run_id


def create_run(
    client: MlflowClient, experiment: str, name: str, params: dict[str, Any], tags: dict[str, str] | None = None
) -> str:
    """Create a run with parameters and tags, and return its id; raise `InputError` if the store fails."""
    experiment_id = find_experiment(client, experiment).experiment_id
    with store_errors(client.tracking_uri):
        run_id: str = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        entries = [Param(key, str(value)) for key, value in params.items()]
        try:
            for start in range(0, len(entries), PARAMS_LIMIT):
                client.log_batch(run_id, params=entries[start : start + PARAMS_LIMIT])
        except Exception:
            with contextlib.suppress(Exception):  # the store may be away by now
                client.delete_run(run_id)
            raise
    return run_id


def resume_run(client: MlflowClient, run_id: str, config: Config) -> None:
    """Give a run the configuration, the name, the tags and the command with which it is resumed.

    Raises:
        InputError: the store fails, or its artifacts cannot be written.
    """
    log_config(client, run_id, config)
    with store_errors(client.tracking_uri):
        client.update_run(run_id, name=config.run_name)
        for key, value in {COMMAND: command(), **config.tags}.items():
            client.set_tag(run_id, key, value)


def mark_running(client: MlflowClient, run_id: str, config: Config) -> float:
    """Note in a run that its training begins, and return when it was created, in seconds since 1970.

    Raises:
        InputError: the store fails.
    """
    with store_errors(client.tracking_uri):
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, EPOCHS, str(config.epochs))
        client.set_tag(run_id, UNSETTLED, config.storage)
        update_description(client, run_id)
        return float(client.get_run(run_id).info.start_time) / 1000


def log_config(client: MlflowClient, run_id: str, config: Config) -> None:
    """Keep a configuration among the artifacts of the run.

    Raises:
        InputError: the artifacts cannot be written.
    """
    location = find_run(client, run_id).info.artifact_uri
    try:
        client.log_dict(run_id, to_json_values(config), CONFIG_NAME)
    except Exception as error:  # each kind of artifact store has exceptions of its own
        remedy = f"install {error.name}" if isinstance(error, ModuleNotFoundError) else "make it writable"
        raise InputError(
            f"artifact store {location} cannot be written: {describe(error)}; {remedy}, or use another --experiment"
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


def viewing_lines(client: MlflowClient, run_id: str) -> list[str]:
    """Return how to look at a run: its address, and before it the command that serves a store without a server."""
    lines, uri = [], without_credentials(client.tracking_uri)
    if not uri.startswith(("http://", "https://")):
        lines.append(f"look with: mlflow ui --backend-store-uri {shlex.quote(shown_uri(client.tracking_uri))}")
        uri = UI_ADDRESS
    try:
        path = page_path(client.get_run(run_id))
    except Exception:  # each kind of store has exceptions of its own
        path = ""
    return [*lines, f"look at: {uri.rstrip('/')}/{path}"]


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
            filesystem, path = open_filesystem(location)
            copy_files(path, str(folder), filesystem)
            return folder
    return fetch_artifact(client, run_id, f"checkpoints/{which}", folder)
