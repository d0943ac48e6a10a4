"""A thread that tells where a worker's training stands still: peers wait in silence for the one that does."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STALL_SECONDS = 30.0
"""Time without progress before it is said; then again after twice the time, and so on."""
START_FACTOR = 4
"""The first batch may take so many times longer: there, a network is compiled."""
_PROJECT = Path(__file__).resolve().parents[2]
_OWN = tuple(str(_PROJECT / folder) + os.sep for folder in ("pipeline", "preprocess", "training"))
"""Not all of the folder: the environment, or other packages, may be in it."""
_WAITING = ("torch/distributed/", "torch/autograd/graph.py")
"""Where a training waits for its peers: in a collective, or in the backward pass, which averages the gradients."""


class StallWatch:
    """Watches the thread that makes it, until that thread ends."""

    def __init__(self, rank: int, progress: Callable[[], int], seconds: float = STALL_SECONDS) -> None:
        """Begin to watch; `progress` returns a number that grows with each batch, from 0."""
        self._rank, self._progress, self._seconds = rank, progress, seconds
        self._watched = threading.current_thread()
        threading.Thread(target=self._watch, name="stall", daemon=True).start()

    def _watch(self) -> None:
        known, since, limit = 0, time.monotonic(), START_FACTOR * self._seconds
        while self._watched.is_alive():
            time.sleep(self._seconds / 10)
            now, done = time.monotonic(), self._progress()
            if done != known:
                known, since, limit = done, now, self._seconds
            elif now - since >= limit and (frame := sys._current_frames().get(self._watched.ident or 0)):
                print(self._report(frame, now - since), file=sys.stderr, flush=True)
                limit *= 2

    def _report(self, frame: FrameType, seconds: float) -> str:
        stack = traceback.extract_stack(frame)
        if any(part in entry.filename for entry in stack for part in _WAITING):
            return f"worker {self._rank} has waited for the other workers for {seconds:.0f} s"
        own = [entry for entry in stack if entry.filename.startswith(_OWN)]
        where = f"{Path(own[-1].filename).relative_to(_PROJECT)}:{own[-1].lineno}" if own else "code of a library"
        lines = "".join(traceback.format_list(stack))
        return f"worker {self._rank} has not moved on from {where} for {seconds:.0f} s:\n{lines.rstrip()}"
