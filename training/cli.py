"""Exit codes and error lines of the commands of `training`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from errors import InputError

INPUT_ERROR = 2
INTERRUPTED = 130


def run_command(main: Callable[[Sequence[str]], None]) -> int:
    """Run `main` on the command line and return the exit code: 0, 2 for bad input, 130 or 143 when interrupted.

    SIGTERM takes the way of Ctrl-C, so that a stopped job cleans up like an interrupted one.
    """
    received: list[int] = []

    def on_sigterm(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        # Ray's own handler was there first: it prints where the process stood, and has set an alarm that would abort
        # the cleaning up after three seconds.
        signal.alarm(0)
        # A script's background job ignores Ctrl-C, but must hear this.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return INPUT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + received[0] if received else INTERRUPTED
    return 0
