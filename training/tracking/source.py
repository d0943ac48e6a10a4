"""The code and the libraries that a result depends on."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "ray", "nvidia-dali-cuda120", "mlflow", "webdataset", "pillow-simd")


def environment(project: Path) -> dict[str, str]:
    """Return the git commit of `project` and the versions of the libraries that a result depends on."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(describe, cwd=project, capture_output=True, text=True, check=False)
    versions = {f"version.{name}": importlib.metadata.version(name) for name in LIBRARIES}
    return {"git_commit": answer.stdout.strip() or "unknown", **versions}
