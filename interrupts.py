"""Signal handling of the commands: raise, turn SIGTERM into SIGINT, defer, block."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        """Keep the exit code that a shell expects after signal `number`."""
        self.exit_code = 128 + number


def raise_on_signals(*numbers: int) -> None:
    """Raise `Interrupted` on the first of these signals; ignore later ones, which would interrupt the cleanup."""

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for each in numbers:
        signal.signal(each, interrupt)


def sigterm_as_sigint() -> list[int]:
    """Turn SIGTERM into SIGINT, the only signal on which Ray Train cleans up; return the list of those received."""
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        # Ray's own handler came first: it has set an alarm that would abort the cleanup after three seconds.
        signal.alarm(0)
        # A background job of a script ignores Ctrl-C, but SIGTERM must end it.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
    return received


@contextlib.contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Restore the SIGTERM handler after the body, e.g. `ray.init`, which installs one that exits without cleanup."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def block_signals(*numbers: int) -> Iterator[None]:
    """Block these signals while the body runs, also in the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            hand_over()

    def hand_over() -> None:
        if came:
            number = came[0]
            came.clear()
            signal.signal(number, before[number])
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
