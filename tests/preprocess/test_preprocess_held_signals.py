"""Signals that wait until the code in the middle can bear a handler that raises."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from interrupts import defer_signals


class Interrupted(BaseException):
    pass


def interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the command's does, so that nothing cuts its cleaning short
    raise Interrupted


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, interrupt)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_until_it_is_handed_over() -> None:
    with defer_signals() as hand_over:
        hand_over()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            hand_over()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_signal_that_nobody_asks_for_comes_at_the_end() -> None:
    stack = contextlib.ExitStack()
    stack.enter_context(defer_signals())
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted):
        stack.close()


def test_a_second_signal_does_not_wait() -> None:
    with defer_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_without_a_signal_everything_is_as_before() -> None:
    with defer_signals() as hand_over:
        hand_over()
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_what_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with defer_signals() as hand_over:
        signal.raise_signal(signal.SIGINT)
        hand_over()
