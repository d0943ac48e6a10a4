"""The metrics of a run on their way to MLflow."""

from __future__ import annotations

import logging
import threading
import time

from training.tracking.client import describe, impatient_client
from training.tracking.delivery import Delivery
from training.tracking.runs import BEST_CHECKPOINT, LAST_CHECKPOINT
from training.tracking.spool import RunUpdate, Spool, unsent_folder

SEND_SECONDS = 5.0
"""Metrics go out together this often: a request costs the training's process some milliseconds, whatever is in it."""
LONGEST_PAUSE = 60.0
"""Pause between two attempts after many that failed, in seconds; it doubles from `SEND_SECONDS` on."""
CLOSE_SECONDS, CLOSE_PAUSE = 15.0, 2.0
"""Longest wait for MLflow at the end of a training, and the pause between two attempts, in seconds; a worker that waits
for 30 seconds counts as stalled."""
MEMORY_POINTS = 100_000
"""Points that are kept where neither the storage nor MLflow takes any."""
TRAINING = "training"
"""Writer of the training's own metrics."""
DROPPED = "twotower.dropped_points"
"""Tag of a run: how many points were dropped, because MLflow was away for too long."""

logger = logging.getLogger(__name__)


class MetricLog:
    """Sends metrics and tags of one run from a thread of its own, so that no step waits for a server.

    They are written to the run's storage first, and removed there when MLflow has them: what is left when this process
    ends is sent by the one that takes its place, or at the end of the training.
    """

    def __init__(self, uri: str, run_id: str, storage: str, writer: str = TRAINING) -> None:
        self._uri, self._run_id = uri, run_id
        self._delivery: Delivery | None = None
        self._spool = Spool(storage, run_id, writer)
        self._folder = unsent_folder(storage, run_id)
        self._unwritten = RunUpdate()
        self._lock = threading.Lock()  # of `_unwritten`
        self._flushing = threading.Lock()  # updates reach the spool in order
        self._dropped = 0
        self._is_away = self._is_full = False
        self._deadline: float | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, name=f"mlflow {writer}", daemon=True)
        # Another writer of the same node meets the same server and storage.
        self._warn = logger.warning if writer == TRAINING else logger.debug
        self._thread.start()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send these metrics within `SEND_SECONDS`, if MLflow is there."""
        now = int(time.time() * 1000)
        with self._lock:
            self._unwritten.points.extend((key, float(value), now, step) for key, value in metrics.items())

    def record_checkpoints(self, last: str, best: str | None) -> None:
        """Note in the run where its last and its best checkpoint lie."""
        with self._lock:
            self._unwritten.tags[LAST_CHECKPOINT] = last
            if best is not None:
                self._unwritten.tags[BEST_CHECKPOINT] = best
        self.flush()
        self._wake.set()

    def flush(self) -> None:
        """Write all so far to the storage; what it does not take stays in memory, with a warning."""
        with self._flushing:
            update = self._take()
            if update == RunUpdate():
                return
            try:
                self._count_dropped(self._spool.append(update))
                self._is_full = False
            except OSError as error:
                self._put_back(update)
                if not self._is_full:
                    self._warn("metrics cannot be kept in %s, only in memory: %s", self._folder, describe(error))
                self._is_full = True

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until MLflow has everything, but not longer than `seconds`; then it is left in the storage."""
        self.flush()
        self._deadline = time.monotonic() + seconds
        self._wake.set()
        self._thread.join(seconds + CLOSE_PAUSE)

    def _send_until_closed(self) -> None:
        pause = SEND_SECONDS
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            deadline = self._deadline
            is_sent = self._send()
            if deadline is not None and (is_sent or time.monotonic() > deadline):
                return
            pause = SEND_SECONDS if is_sent else min(2 * pause, LONGEST_PAUSE)
            if deadline is not None:
                pause = CLOSE_PAUSE

    def _send(self) -> bool:
        self.flush()
        try:
            if self._delivery is None:  # here, because a client of a database opens it
                self._delivery = Delivery(impatient_client(self._uri), self._run_id)
            self._delivery.send_all(self._spool)
            if self._is_full:
                self._send_from_memory(self._delivery)
        except Exception as error:  # whatever the store's way to fail: training goes on, the points wait
            if not self._is_away:
                self._warn("MLflow takes no metrics (%s); they wait in %s", describe(error), self._folder)
            self._is_away = True
            return False
        if self._is_away:
            self._warn("MLflow takes metrics again, and has those that waited")
        self._is_away = False
        return True

    def _send_from_memory(self, delivery: Delivery) -> None:
        with self._flushing:
            update = self._take()
            try:
                delivery.send(update)
            except Exception:
                self._put_back(update)
                raise

    def _take(self) -> RunUpdate:
        with self._lock:
            update, self._unwritten = self._unwritten, RunUpdate()
        return update

    def _put_back(self, update: RunUpdate) -> None:
        with self._lock:
            points = update.points + self._unwritten.points
            tags = update.tags | self._unwritten.tags
            self._unwritten = RunUpdate(points[-MEMORY_POINTS:], tags)
        self._count_dropped(max(0, len(points) - MEMORY_POINTS))

    def _count_dropped(self, points: int) -> None:
        if points == 0:
            return
        if self._dropped == 0:
            self._warn("MLflow has been away for too long: the oldest metrics in %s are dropped", self._folder)
        self._dropped += points
        with self._lock:
            self._unwritten.tags[DROPPED] = str(self._dropped)
