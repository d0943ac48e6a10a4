"""Files that are there whole or not at all: written aside, flushed to disk, renamed."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

PARTIAL_PATTERN = r"\.[\w-]+\.partial"
"""What `partial_path` puts after a name, as a regular expression; before the name, it puts a dot."""


def partial_path(path: Path) -> Path:
    """Return the name under which this process writes `path` before it is whole.

    It is the process's own: where a task is tried again on another node, its first worker may still be at work.
    """
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    return path.with_name(f".{path.name}.{host}-{os.getpid()}.partial")


def atomic_write(path: Path, data: Buffer) -> None:
    """Write a file so that it has the name `path` when all of it is on disk, and not before.

    When that fails nothing is left, and what had the name before still has it.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partial_files(folder: Path, names: str = ".+") -> None:
    """Remove what writers in `folder` did not finish, of files whose names match a regular expression."""
    pattern = re.compile(rf"\.({names}){PARTIAL_PATTERN}")
    for entry in list(folder.iterdir()):
        if pattern.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
