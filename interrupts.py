"""Deferred signals, for code that breaks when a signal handler raises in the middle of a call."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def defer_signals() -> Iterator[Callable[[], None]]:
    """Defer SIGINT and SIGTERM while the body runs; deliver at its end what has arrived.

    A second signal is delivered at once. Ignored signals stay ignored. Only the main thread receives signals, so
    nothing happens in others.

    Yields:
        A function that delivers the first signal that has arrived, if any, to its original handler.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {int(number): signal.getsignal(number) for number in _SIGNALS if main}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is given
        came.append(number)
        if len(came) > 1:
            hand_over()

    def hand_over() -> None:
        if not came:
            return
        number, handler = came[0], before[came[0]]
        came.clear()
        if callable(handler):
            handler(number, None)
        else:
            signal.signal(number, handler)
            signal.raise_signal(number)

    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, note)
    try:
        yield hand_over
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # the handler may have installed another
                signal.signal(number, handler)
        hand_over()
