"""MLflow: one run per training, however often its workers start again."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import queue
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from pyarrow.fs import FileSystem, copy_files

from errors import InputError
from training.checkpoint import PAGE
from training.cli import resolve

LIBRARIES = ("torch", "torchvision", "ray", "nvidia-dali-cuda120", "mlflow", "webdataset", "pillow-simd")
SQLITE = "sqlite:///"
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment whose runs the UI shows as trainings; without it they come up among evaluations of prompts."""
CONFIG_NAME = "config.json"
"""Artifact of a run: its configuration, as it was requested."""
LAST_CHECKPOINT, BEST_CHECKPOINT = "checkpoint.last", "checkpoint.best"
"""Tags of a run: where in its storage these checkpoints lie, from the moment that they are complete."""
EPOCHS = "twotower.epochs"
"""Tag of a run: to how many epochs it is trained; its parameter keeps the number that it began with."""
RETRY_SECONDS = 5.0
"""Pause before metrics that the server did not take are sent again."""
SEND_SECONDS = 5.0
"""Metrics go out together this often: a request costs the training's process some milliseconds, whatever is in it."""
BATCH_LIMIT = 1000
"""Metrics that MLflow takes in one request."""
CLOSE_SECONDS = 60.0
"""Longest wait at the end of a training for metrics that are not sent yet, in seconds."""

logger = logging.getLogger(__name__)


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


def environment(project: Path) -> dict[str, str]:
    """Return the git commit of `project` and the versions of the libraries that a result depends on."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(describe, cwd=project, capture_output=True, text=True, check=False)
    versions = {f"version.{name}": importlib.metadata.version(name) for name in LIBRARIES}
    return {"git_commit": answer.stdout.strip() or "unknown", **versions}


class MetricLog:
    """Sends metrics of one run from a thread of its own, so that no step waits for a server.

    What the server does not take is kept and sent again. After a restart the steps up to the last point of each
    metric come by a second time; they are left out, so that no curve has a point twice.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self._client = MlflowClient(uri)
        self._run_id = run_id
        self._last_step: dict[str, int] = {}
        self._queue: queue.SimpleQueue[list[Metric] | threading.Event | None] = queue.SimpleQueue()
        self._pending: list[Metric] = []
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send these metrics within `SEND_SECONDS`."""
        now = int(time.time() * 1000)
        self._queue.put([Metric(key, value, now, step) for key, value in metrics.items()])

    def flush(self, seconds: float) -> bool:
        """Wait until the server has all points so far, but not longer than this; return whether it has them."""
        sent = threading.Event()
        self._queue.put(sent)
        return sent.wait(seconds)

    def record_checkpoints(self, last: str, best: str | None) -> None:
        """Note in the run where its last and its best checkpoint lie; a server that is away is only a warning."""
        try:
            for name, location in ((LAST_CHECKPOINT, last), (BEST_CHECKPOINT, best)):
                if location is not None:
                    self._client.set_tag(self._run_id, name, location)
        except Exception as error:  # as in `_send`
            logger.warning("MLflow did not take the location of %s: %s", last, error)

    def close(self) -> None:
        """Send the rest; raise `TimeoutError` if the server does not take it."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(
                f"MLflow took no metrics for {CLOSE_SECONDS:.0f} s: {len(self._pending)} points are lost"
            )

    def _send_all(self) -> None:
        open_ended, due = True, time.monotonic()
        while open_ended:
            try:
                item = self._queue.get(timeout=max(0.0, due - time.monotonic()) if self._pending else None)
            except queue.Empty:
                item = []
            if isinstance(item, list):
                self._pending += item
            if not isinstance(item, list) or time.monotonic() >= due:
                while self._pending and not self._send():
                    time.sleep(RETRY_SECONDS)
                due = time.monotonic() + SEND_SECONDS
            if isinstance(item, threading.Event):
                item.set()
            open_ended = item is not None

    def _send(self) -> bool:
        try:
            batch = self._pending[:BATCH_LIMIT]
            fresh = [metric for metric in batch if metric.step > self._last_step_of(metric.key)]
            self._client.log_batch(self._run_id, metrics=fresh)
        except Exception as error:  # whatever the store's way to fail: training goes on, the points wait
            logger.warning("MLflow did not take %d points, will try again: %s", len(self._pending), error)
            return False
        self._last_step.update({metric.key: metric.step for metric in fresh})
        self._pending = self._pending[len(batch) :]
        return True

    def _last_step_of(self, key: str) -> int:
        if key not in self._last_step:
            history = self._client.get_metric_history(self._run_id, key)
            self._last_step[key] = max((point.step for point in history), default=-1)
        return self._last_step[key]
