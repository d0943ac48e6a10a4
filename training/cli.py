"""Exit codes and error lines of the commands of `training`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from errors import InputError
from interrupts import sigterm_as_sigint


def run_command(main: Callable[[Sequence[str]], None]) -> int:
    """Run `main` on the command line and return the exit code: 0, 2 for bad input, 130 or 143 when interrupted.

    SIGTERM takes the way of Ctrl-C, so that a stopped job cleans up like an interrupted one.
    """
    terminated = sigterm_as_sigint()
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 143 if terminated else 130
    return 0
