"""Signals that raise, once, and signals that wait until the code in the middle can bear a handler that raises."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from interrupts import Interrupted, block_signals, defer_signals, keep_sigterm_handler, raise_on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raise_on_signals(*before)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_only_the_first_signal_raises() -> None:
    with pytest.raises(Interrupted) as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.exit_code == 143
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


def test_a_blocked_signal_comes_at_the_end() -> None:
    stack = contextlib.ExitStack()
    stack.enter_context(block_signals(signal.SIGINT))
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted):
        stack.close()


def test_the_handler_of_sigterm_is_kept() -> None:
    with keep_sigterm_handler():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


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
    before = signal.getsignal(signal.SIGINT)
    with defer_signals() as hand_over:
        hand_over()
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with defer_signals() as hand_over:
        signal.raise_signal(signal.SIGINT)
        hand_over()
