"""Requests to a worker to save a checkpoint, and then to go on, to make room for another worker, or to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType

import ray.train

from training.launch.store import CheckpointStore
from training.loop.request import Request

POLL_SECONDS = 1.0
_sigterm = threading.Event()


class RequestWatch:
    """The requests to this process. Threads look for them: a step does not wait for a bucket, or for Ray."""

    def __init__(self, store: CheckpointStore | None, *, watch_preemption: bool) -> None:
        """Begin to watch.

        Args:
            store: where requests to save or stop are left; None on processes that need not look.
            watch_preemption: the cluster announces that it takes a node back; all processes must watch it together.
        """
        self._store = store
        self._stop, self._save = threading.Event(), threading.Event()
        if store is not None:
            threading.Thread(target=self._watch_store, args=(store,), name="stop", daemon=True).start()
        if watch_preemption:
            threading.Thread(target=self._watch_preemption, name="preemption", daemon=True).start()

    def __call__(self) -> Request:
        """Return the request of the last second; one to save is returned once."""
        if self._stop.is_set():
            return Request.STOP
        if _sigterm.is_set():
            return Request.RESTART
        if self._save.is_set():
            self._save.clear()
            return Request.SAVE
        return Request.NONE

    def _watch_store(self, store: CheckpointStore) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with contextlib.suppress(OSError):  # the storage may be away for a while
                if store.is_requested("stop"):
                    self._stop.set()
                if store.is_requested("save"):
                    store.withdraw_requests("save")
                    self._save.set()

    def _watch_preemption(self) -> None:
        known = None
        while not self._stop.wait(POLL_SECONDS):
            notice = ray.train.get_preemption_info()  # waits for all workers, and gives them the same answer
            if notice is not None and notice != known:
                known = notice
                self._save.set()


def note_sigterm(grace_seconds: float) -> None:
    """Let SIGTERM be a request to save, from now on; the process ends after `grace_seconds`, or at a second one."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if _sigterm.is_set():
            os._exit(128 + number)
        _sigterm.set()
        timer = threading.Timer(grace_seconds, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, handle)
