"""The folder that a build writes: whose it is while it is written, and what may lie in it.

A build marks the folder with a lock file before it writes anything else. A folder that has neither this mark nor
a manifest is somebody else's and stays untouched; one with the mark and no manifest is what a killed build left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from preprocess.manifest import MANIFEST_NAME, MEAN_IMAGE_NAME, InputError

LOCK_NAME = ".build.lock"
DRAWN_NAME = ".drawn"  # the sample's raw images, while its shards are built
SCRATCH_NAME = ".scratch"  # what containers of the input were unpacked into, likewise
_OURS = re.compile(
    rf"\.?((train|val)-\d{{6,}}\.(tar|idx)|{re.escape(MEAN_IMAGE_NAME)}|{re.escape(MANIFEST_NAME)})(\.partial)?"
    rf"|{re.escape(LOCK_NAME)}|{re.escape(DRAWN_NAME)}|{re.escape(SCRATCH_NAME)}"
)


def partial_path(path: Path) -> Path:
    """Return the name under which `path` is written before it is whole."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file aside, flush it to disk, and give it its name."""
    with partial_path(path).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial_path(path).replace(path)


def flush_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_vacant(folder: Path) -> None:
    """Raise `InputError` unless a build may write into `folder`: absent, empty, or left by a killed build."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"output {folder} is not a folder")
    names = sorted(entry.name for entry in folder.iterdir())
    ours = LOCK_NAME in names or MANIFEST_NAME in names
    foreign = [name for name in names if not (ours and _OURS.fullmatch(name))]
    if foreign:
        raise InputError(
            f"output folder {folder} holds {foreign[0]!r}, which is not from a build: choose an empty or new one"
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Own `folder` for a build: make it, mark it, remove what an earlier build left.

    When the body raises before a manifest is there, all that lies in the folder is removed.

    Raises:
        InputError: it cannot be made, holds foreign files, or another build is at work in it.
    """
    check_vacant(folder)
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be made: {error.strerror}") from error
    with _locked(folder):
        try:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            _clear(folder)
            yield
        finally:
            if not (folder / MANIFEST_NAME).exists():
                _clear(folder)
            (folder / LOCK_NAME).unlink(missing_ok=True)
            if created:
                with contextlib.suppress(OSError):  # not empty: the build is whole
                    folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[BinaryIO]:
    # The system releases the lock when the process ends, however it ends.
    with (folder / LOCK_NAME).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another build is writing into {folder}") from None
        if os.fstat(file.fileno()).st_nlink == 0:
            raise InputError(f"another build has just ended in {folder}: look at what it left")
        yield file


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == LOCK_NAME:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
