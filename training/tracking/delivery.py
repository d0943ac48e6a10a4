"""Giving MLflow the updates of a run, each point exactly once."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from training.tracking.spool import RunUpdate, Spool

BATCH_LIMIT = 1000
"""Metrics that MLflow takes in one request."""


class Delivery:
    """Sends updates to a run.

    Two things keep a point from being there twice. Its identity (name, value, time, step) does not change between
    attempts, and a SQL store keeps equal points once: a request that timed out may have been served, or may yet be. And
    the steps of a metric rise, so that one that comes again, because the training went back to a checkpoint, is left
    out.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._last_steps: dict[str, int] | None = None
        """The last step of each metric in the run; None: to be asked for."""

    def send(self, update: RunUpdate) -> None:
        """Send an update; raise the store's error if it does not take it, after which it may be sent again."""
        try:
            self._send_points(update)
        except Exception:
            self._last_steps = None
            raise
        if update.tags:
            tags = [RunTag(key, value) for key, value in update.tags.items()]
            self._client.log_batch(self._run_id, tags=tags)
        if update.status is not None:
            self._client.set_terminated(self._run_id, update.status, update.end_time)

    def send_all(self, spool: Spool) -> None:
        """Send what lies in a spool, and remove it there; raise the store's error, or `OSError`."""
        while len(spool):
            update, names = spool.oldest(BATCH_LIMIT)
            self.send(update)
            spool.remove(names)

    def _send_points(self, update: RunUpdate) -> None:
        if not update.points:
            return
        if self._last_steps is None:
            data = self._client.get_run(self._run_id).data.to_proto()
            self._last_steps = {metric.key: metric.step for metric in data.metrics}
        fresh: list[Metric] = []
        for key, value, timestamp, step in update.points:
            if step > self._last_steps.get(key, -1):
                fresh.append(Metric(key, value, timestamp, step))
                self._last_steps[key] = step
        for start in range(0, len(fresh), BATCH_LIMIT):
            self._client.log_batch(self._run_id, metrics=fresh[start : start + BATCH_LIMIT])
