"""Requests to a worker to save a checkpoint, and then to go on, to make room for another worker, or to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray.train
from ray.train.torch import TorchConfig

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


@dataclass
class SigtermTorchConfig(TorchConfig):
    """Ray Train's set-up of torch's process group, on workers that save a checkpoint when SIGTERM comes."""

    grace_seconds: float = 30.0
    """Time to save; then, and at a second SIGTERM, the worker ends."""

    @property
    def backend_cls(self) -> type:
        """The class that sets up the workers."""
        return _SigtermBackend


class _SigtermBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # a class that has no public name
    def on_training_start(self, worker_group: Any, backend_config: SigtermTorchConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        # In the main threads of the workers: training runs in another one, which may not install it.
        worker_group.execute(_note_sigterm, backend_config.grace_seconds)


def _note_sigterm(grace_seconds: float) -> None:
    def handle(number: int, _frame: FrameType | None) -> None:
        if _sigterm.is_set():
            os._exit(128 + number)
        _sigterm.set()
        timer = threading.Timer(grace_seconds, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, handle)
