"""The MLflow store: where it is, and a client of it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from errors import InputError
from training.cli import resolve

_WRAPPING = "'\"() "
DEFAULT_STORE = "sqlite:///mlflow.db"
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""What MLflow's variables are set to where they are not set: in general, and for the first question to a server."""
WORKER = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""The same in workers, which have only small things to say, and will say them again."""


def tracking_uri(project: Path) -> str:
    """Return where runs are kept: `MLFLOW_TRACKING_URI`, or `mlflow.db` in `project`; SQLite paths made absolute.

    Workers run in folders of their own: a relative path would mean another file in each.

    Raises:
        InputError: it is a SQLite store in memory, or a relative path in a job's copy of the project.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    file = sqlite_file(uri)
    if file is None:
        return uri
    absolute = resolve("MLFLOW_TRACKING_URI", file, project)
    return make_url(uri).set(database=absolute).render_as_string(hide_password=False)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None for a store of another kind; raise `InputError` if it has no file."""
    if not uri.startswith("sqlite"):
        return None
    try:
        database = make_url(uri).database or ""
    except ArgumentError:
        database = ""
    if database in ("", ":memory:") or database.startswith("file:"):
        raise InputError(
            f"MLFLOW_TRACKING_URI is {uri}: it names no file; use sqlite:///PATH or the address of a server"
        )
    return Path(database)


def shown_uri(uri: str) -> str:
    """Return the address of a store as it may be printed: without its password."""
    try:
        return make_url(uri).render_as_string() if "://" in uri else uri
    except ArgumentError:
        return uri


def without_credentials(uri: str) -> str:
    """Return the address of a server without user and password."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else uri


def open_client(uri: str, *, create: bool = False) -> MlflowClient:
    """Return a client of the store at `uri`.

    Raises:
        InputError: it does not answer, or it is a SQLite file that does not exist and `create` is off.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file() and not create:
        raise InputError(f"MLflow store {uri} does not exist; set MLFLOW_TRACKING_URI to the one that has the run")
    _silence()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with store_errors(uri):
        with _defaults(PROBE):
            if file is not None and not file.is_file():
                _create_sqlite(uri, file)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        return client


def impatient_client(uri: str) -> MlflowClient:
    """Return a client for a worker, which does not wait long for an answer; it asks nothing yet."""
    _silence()
    for name, value in WORKER.items():
        os.environ.setdefault(name, value)
    return MlflowClient(uri)


def hurry_if_away(client: MlflowClient) -> None:
    """Wait less for a store that does not answer, from now on: for the end of a training, which asks several times."""
    try:
        with _defaults(PROBE):
            client.search_experiments(max_results=1)
    except Exception:  # each kind of store has its own
        os.environ.update(PROBE)


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn any error of the store at `uri` into an `InputError` with one line; each kind of store has its own."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = describe(error).replace(uri, shown_uri(uri))
        store = f"MLflow store {shown_uri(uri)} cannot be used (MLFLOW_TRACKING_URI)"
        raise InputError(f"{store}: {reason}; start its server, or name another store") from error


def describe(error: Exception) -> str:
    """Return the first line of an error's message, or its kind if it has none; of a failed request, its cause."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "Caused by" in line:  # that of requests names a pool, an address, and repeats them
        request, _, cause = line.partition(" failed with exception ")
        line = f"{request}: {re.split(': |, ', cause)[-1].strip(_WRAPPING)}"
    return line


def _silence() -> None:
    # They narrate the making of tables, and print every failed attempt; what comes of it, we say.
    for name in ("mlflow.store.db", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _create_sqlite(uri: str, file: Path) -> None:
    """Create the tables aside and put the complete file into place, unless another process was faster."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        aside = Path(folder, file.name)
        MlflowClient(make_url(uri).set(database=str(aside)).render_as_string()).search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):
            os.link(aside, file)


@contextlib.contextmanager
def _defaults(variables: dict[str, str]) -> Iterator[None]:
    unset = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(unset)
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]
