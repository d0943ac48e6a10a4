"""The project's commands, run by tests as a user does, in the project folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def run_command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in the project folder, with stdout and stderr as text."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )


def complaints(stderr: str) -> list[str]:
    """Return the lines with which a command ended; the progress that a slow machine sees goes before them."""
    return [line for line in stderr.splitlines() if not re.match(r"\w+: \d+/\d+ images, ", line)]
