"""The MLflow store: where it is, and a client of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mlflow import MlflowClient

from errors import InputError
from training.cli import resolve

SQLITE = "sqlite:///"


def tracking_uri(project: Path) -> str:
    """Return where runs are kept: `MLFLOW_TRACKING_URI`, or `mlflow.db` in `project`; SQLite paths made absolute.

    Workers run in folders of their own: a relative path would mean another file in each.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if not uri.startswith(SQLITE):
        return uri
    return SQLITE + resolve("MLFLOW_TRACKING_URI", uri.removeprefix(SQLITE), project)


def open_client(uri: str, *, create: bool = False) -> MlflowClient:
    """Return a client of the store at `uri`.

    Raises:
        InputError: it does not answer, or it is a SQLite file that does not exist and `create` is off.
    """
    if uri.startswith(SQLITE) and not create and not Path(uri.removeprefix(SQLITE)).is_file():
        raise InputError(f"MLflow store {uri} does not exist; set MLFLOW_TRACKING_URI to the one that has the run")
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it narrates the making of its tables
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # each kind of store has exceptions of its own
        reason = str(error).splitlines()[0]
        raise InputError(f"MLflow store {uri} does not answer (MLFLOW_TRACKING_URI): {reason}") from error
    return client
