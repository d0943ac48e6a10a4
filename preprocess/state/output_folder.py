"""The folder that a build writes: whose it is while it is written, and what may lie in it.

A build marks the folder with a lock file before it writes anything else. A folder that has neither this mark, nor
`.unfinished`, nor a manifest is somebody else's and stays untouched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from atomic_files import PARTIAL_PATTERN, flush_folder, remove_partials
from errors import InputError
from preprocess.manifest import MANIFEST_NAME, MEAN_IMAGE_NAME

LOCK_NAME = ".build.lock"
UNFINISHED_NAME = ".unfinished"
_FINAL = rf"(train|val)-\d{{6,}}\.(tar|idx)|{re.escape(MEAN_IMAGE_NAME)}|{re.escape(MANIFEST_NAME)}"
_PARTIAL = rf"\.({_FINAL}){PARTIAL_PATTERN}"
_OURS = rf"{_FINAL}|{_PARTIAL}|{re.escape(LOCK_NAME)}|{re.escape(UNFINISHED_NAME)}"


def check_vacant(folder: Path) -> None:
    """Raise `InputError` unless a build may write into `folder`: absent, empty, or left by an unfinished build."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        if isinstance(error, NotADirectoryError) and os.path.exists(folder):  # noqa: PTH110 - Path's may raise
            raise InputError(f"output {folder} is not a folder") from None
        raise InputError(f"output folder {folder} cannot be used: {error.strerror}") from error
    ours = not {LOCK_NAME, UNFINISHED_NAME, MANIFEST_NAME}.isdisjoint(names)
    foreign = [name for name in names if not (ours and re.fullmatch(_OURS, name))]
    if foreign:
        raise InputError(
            f"output folder {folder} holds {foreign[0]!r}, which is not from a build: choose an empty or new one"
        )


@contextlib.contextmanager
def claimed(folder: Path, complete: bool) -> Iterator[None]:
    """Own `folder` for a build: make it and mark it; at the end, remove half-written files, the mark, an empty folder.

    Args:
        folder: the output.
        complete: whether it had a manifest when it was looked at.

    Raises:
        InputError: it cannot be made, another build is at work in it, or was until now.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be made: {error.strerror}") from error
    with _locked(folder):
        try:
            if (folder / MANIFEST_NAME).exists() != complete:
                raise InputError(f"another build has just ended in {folder}: look at what it left")
            if created:
                flush_folder(folder.parent)
            yield
        finally:
            remove_partials(folder, _FINAL)
            (folder / LOCK_NAME).unlink(missing_ok=True)
            if created:
                with contextlib.suppress(OSError):  # not empty: there is something to keep
                    folder.rmdir()


def remove_strays(folder: Path, keep: Collection[str]) -> None:
    """Remove what builds wrote into a folder without a manifest, but for the files named in `keep`."""
    for entry in list(folder.iterdir()):
        if re.fullmatch(_FINAL, entry.name) and entry.name not in keep:
            entry.unlink()
    remove_partials(folder, _FINAL)


def remove_leftovers(folder: Path) -> None:
    """Remove what a build that was killed at its very end left beside the manifest.

    Raises:
        InputError: another build is at work in the folder.
    """
    names = {entry.name for entry in folder.iterdir()}
    if {LOCK_NAME, UNFINISHED_NAME} & names or any(re.fullmatch(_PARTIAL, name) for name in names):
        with claimed(folder, complete=True):
            shutil.rmtree(folder / UNFINISHED_NAME, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The system releases the lock when the process ends, however it ends.
    try:
        lock = (folder / LOCK_NAME).open("ab")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InputError(f"output folder {folder} cannot be written: {error.strerror}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another build is writing into {folder}") from None
        if os.fstat(file.fileno()).st_nlink == 0:
            raise InputError(f"another build has just ended in {folder}: look at what it left")
        yield
