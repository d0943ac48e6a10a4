"""Atomic file writes: into a temporary file, flushed to disk, renamed."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

PARTIAL_PATTERN = r"\.[\w-]+\.partial"
"""Regular expression of the suffix that `partial_path` appends to a name; it also prepends a dot."""


def partial_path(path: Path) -> Path:
    """Return the temporary name under which this process writes `path`.

    Each process has its own: when a task is retried on another node, its first worker may still be running.
    """
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    return path.with_name(f".{path.name}.{host}-{os.getpid()}.partial")


def atomic_write(path: Path, data: Buffer, mode: int = 0o666) -> None:
    """Write a file that gets the name `path` only once all of it is on disk.

    On failure nothing is left behind, and an earlier file of that name stays. `mode` are its permissions, less the
    process's umask.
    """
    partial = partial_path(path)
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partial_files(folder: Path, names: str = ".+") -> None:
    """Remove the unfinished files in `folder` whose final names match a regular expression."""
    pattern = re.compile(rf"\.({names}){PARTIAL_PATTERN}")
    for entry in list(folder.iterdir()):
        if pattern.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
