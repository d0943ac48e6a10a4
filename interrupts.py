"""SIGINT and SIGTERM held back from code that does not bear handlers that raise, and handed over between its calls."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def defer_signals() -> Iterator[Callable[[], None]]:
    """Hold the signals back while the body runs; what has come by its end is handed over then.

    A second one does not wait. What is ignored stays so. Threads other than the main one get no signals and hold none.

    Yields:
        What hands the first signal that has come, if any, to the handler that it would have met.
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
            if signal.getsignal(number) is note:  # one that was handed over may have put another in its place
                signal.signal(number, handler)
        hand_over()
