"""The project's commands, run by tests as a user does, in the project folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


ON_SEVERAL_HOSTS = (
    *("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=", "export RAY_USE_TLS=", "export MLFLOW_TRACKING_URI=https://"),
    *("(umask ", "mlflow server --host ", "sbatch "),
    *(
        "ray start --head --node-ip-address ",
        "ray start --address ",
        "ray job submit -- python -m training.run --data /",
        "ray job submit -- python -m training.run --resume ",
        "ray job stop ",
    ),
)
"""Beginnings of the documented commands that tests/cluster types."""


def documented_commands() -> list[str]:
    """Return the lines of all bash blocks of the documents, continued lines joined, comments dropped."""
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", "")
    lines = [re.sub(r"\s+#.*", "", line) for line in blocks.splitlines()]
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip()]


def documented_command(beginning: str) -> str:
    """Return the one documented command that begins so."""
    (command,) = (command for command in documented_commands() if command.startswith(beginning))
    return command


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
