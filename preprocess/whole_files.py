"""Files that are there whole or not at all: written aside, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL_PATTERN = r"\.[\w-]+\.partial"
"""What `partial_path` puts after a name, as a regular expression; before the name, it puts a dot."""


def partial_path(path: Path) -> Path:
    """Return the name under which this process writes `path` before it is whole.

    It is the process's own: where a task is tried again on another node, its first worker may still be at work.
    """
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    return path.with_name(f".{path.name}.{host}-{os.getpid()}.partial")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that gets the name `path` when the body is done and all of it is on disk.

    When the body raises, nothing is left, and what had the name before still has it.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to a file that is there whole or not at all."""
    with whole_file(path) as file:
        file.write(data)


def remove_partials(folder: Path, names: str = ".+") -> None:
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
