"""Imports go in the opposite direction to the data: training -> pipeline -> preprocess.manifest.

Each library is imported only in the folders that it is for.

Read from the source, so that an import inside a function counts; and tried out, for what is imported indirectly.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from commands import PROJECT

FOLDERS = ("preprocess", "pipeline", "training", "cluster", "benchmarks")
OWN_IMPORTS = {
    "preprocess": (),
    "pipeline": ("preprocess.manifest",),
    "training": ("pipeline", "preprocess.manifest", "preprocess.images.transform"),
    "cluster": (),
    "benchmarks": ("preprocess", "pipeline", "training"),
}
"""Modules of other folders that a folder may import."""
LIBRARY_HOMES = {
    "ray": ("training", "benchmarks", "preprocess/run/ray_pool.py"),
    "mlflow": ("training", "benchmarks"),
    "nvidia": ("pipeline", "benchmarks"),
    "torch": ("pipeline", "training", "benchmarks"),
    "torchvision": ("pipeline", "training", "benchmarks"),
}
"""The folders, or files, that may import a library."""
WITHOUT_RAY_AND_MLFLOW = (
    "preprocess.build_shards",
    "pipeline.loader",
    "training.models",
    "training.parallel.layout",
    "training.optim.optimizer",
    "training.loop.step",
    "training.loop.train",
)
"""Modules that a machine with only torch and DALI can import."""


def modules() -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        for path in sorted((PROJECT / folder).rglob("*.py")):
            yield folder, path


def imports(path: Path) -> set[str]:
    """Return all that a file imports, dotted: of `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def test_folders_import_only_what_lies_nearer_to_the_data() -> None:
    wrong = [
        f"{path.relative_to(PROJECT)} imports {name}"
        for folder, path in modules()
        for name in imports(path)
        if within(name, FOLDERS) and not within(name, (folder, *OWN_IMPORTS[folder]))
    ]
    assert wrong == []


def test_libraries_stay_in_the_folders_that_they_are_for() -> None:
    wrong = [
        f"{path.relative_to(PROJECT)} imports {name}"
        for folder, path in modules()
        for name in imports(path)
        for library, homes in LIBRARY_HOMES.items()
        if within(name, (library,)) and not {folder, str(path.relative_to(PROJECT))} & set(homes)
    ]
    assert wrong == []


def test_network_step_and_loader_work_without_ray_and_mlflow() -> None:
    importing = """
import importlib, importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow"):
            raise ModuleNotFoundError(f"{name} is absent", name=name)

sys.meta_path.insert(0, Absent())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""
    done = subprocess.run(
        [sys.executable, "-c", importing, *WITHOUT_RAY_AND_MLFLOW],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
