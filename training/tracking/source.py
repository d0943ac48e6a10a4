"""The code and the libraries that a result depends on."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "ray", "nvidia-dali-cuda120", "mlflow", "webdataset", "pillow-simd")


def environment(project: Path) -> dict[str, str]:
    """Return the git commit of `project`, or `unknown`, and the versions of the libraries that are installed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # such as DALI for another CUDA
            continue
    return {"git_commit": git_commit(project) or "unknown", **versions}


def git_commit(project: Path) -> str:
    """Return the commit of `project`, with `-dirty` if files differ from it; empty without git or a repository."""
    # Git refuses to read another user's checkout, lest its settings run programs; code of it is running already.
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return ""
    return answer.stdout.strip()
