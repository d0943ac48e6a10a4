"""Requests to a training, which it follows between two steps."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum


class Request(IntEnum):
    """A request to a training; of several, the highest counts."""

    NONE = 0
    SAVE = 1
    """Save a checkpoint and go on."""
    RESTART = 2
    """Save, and end these processes: others go on from the checkpoint."""
    STOP = 3
    """Save, and end the training."""


TakeRequest = Callable[[], Request]
"""Returns what has been asked since the last call."""


class StoppedError(Exception):
    """The training was asked to stop or to restart, and has saved its state."""

    def __init__(self, request: Request) -> None:
        """Keep which of the two it was."""
        super().__init__(request.name)
        self.request = request
