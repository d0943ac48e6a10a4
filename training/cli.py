"""The command line of `training`: exit codes, error lines and paths."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from errors import InputError
from interrupts import sigterm_as_sigint


def run_command(main: Callable[[Sequence[str]], None]) -> int:
    """Run `main` on the command line and return the exit code: 0, 2 for bad input, 130 or 143 when interrupted.

    SIGTERM is handled as Ctrl-C, so that a stopped job cleans up like an interrupted one.
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


def resolve(what: str, path: str | Path, project: Path, *, must_exist: bool = False) -> str:
    """Return the path of the option `what`, relative to the folder `project`, as an absolute one; URIs as they are.

    Raises:
        InputError: it is relative, and `project` is a copy that Ray unpacked for a job (`--working-dir`): files written
            there are lost with the job, and data does not travel with it, unless it `must_exist` and does.
    """
    if "://" in str(path):
        return str(path)
    absolute = (project / path).resolve()
    inside_copy = not Path(path).is_absolute() and is_job_copy(project)
    if inside_copy and not (must_exist and absolute.exists()):
        raise InputError(
            f"{what} is {str(path)!r}: it is relative, but this job runs in a copy of the project (--working-dir); "
            "use an absolute path"
        )
    return str(absolute)


def is_job_copy(project: Path) -> bool:
    """Tell whether Ray unpacked `project` for a job from what `ray job submit --working-dir` uploaded."""
    return any(part.startswith("_ray_pkg_") for part in project.parts)
