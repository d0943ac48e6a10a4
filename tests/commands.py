"""The project's commands, run by tests as a user does, in the project folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def run_command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in the project folder, with stdout and stderr as text."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        **{"timeout": 600, **options},
    )


def complaints(stderr: str) -> list[str]:
    """Return the lines with which a command ended; the progress that a slow machine sees goes before them."""
    return [line for line in stderr.splitlines() if not re.match(r"\w+: \d+/\d+ images, ", line)]


def copy_project(folder: Path) -> None:
    """Copy what git tracks, or would, into a folder."""
    names = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=PROJECT, text=True)
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, folder / name)


def new_environment(folder: Path) -> Path:
    """Make a virtual environment that has the dependencies, those of this one, but not the project; return it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder
