"""The metrics of a run on their way to MLflow."""

from __future__ import annotations

import logging
import queue
import threading
import time

from mlflow import MlflowClient
from mlflow.entities import Metric

from training.tracking.runs import BEST_CHECKPOINT, LAST_CHECKPOINT

RETRY_SECONDS = 5.0
"""Pause before metrics that the server did not take are sent again."""
SEND_SECONDS = 5.0
"""Metrics go out together this often: a request costs the training's process some milliseconds, whatever is in it."""
BATCH_LIMIT = 1000
"""Metrics that MLflow takes in one request."""
CLOSE_SECONDS = 60.0
"""Longest wait at the end of a training for metrics that are not sent yet, in seconds."""

logger = logging.getLogger(__name__)


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
