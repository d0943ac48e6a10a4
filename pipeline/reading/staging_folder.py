"""A folder on the local disk that holds copies of files up to a number of bytes, for all processes of a machine.

Each file is fetched by one process, under another name, and renamed when it is complete and checked. Locks of the
system say who is at work: they end with the process, however it ends. A file is locked while it is read, a partial one
while it is fetched, and `.lock` while room is made. Nobody waits while holding a file, so nobody waits for ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from errors import InputError

LEFT_FREE_BYTES = 1 << 30
"""Free space of the disk that is not used where no limit is named."""
POLL_SECONDS = 0.02
_LOCK = ".lock"
_COMPLETE, _PARTIAL = "*/*.tar", "*/.*.tar.partial"


class StagingFolder:
    """The copies below `root`, in folders of their own: `root/DATASET/NAME.tar`; other files do not count.

    Args:
        root: made if it is not there.
        limit: bytes of all copies, those under way included; None: the free space of the disk but for a gibibyte.

    Raises:
        InputError: it cannot be made or written.
    """

    def __init__(self, root: Path, limit: int | None) -> None:
        self.root = root
        self._limit = limit
        try:
            root.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"staging is {root}: it cannot be written: {reason}; use another folder") from error

    def capacity(self) -> int:
        """Return how many bytes the copies may have at present."""
        used = sum(size for _, size, _ in self._copies())
        room = used + shutil.disk_usage(self.root).free
        return max(0, room - LEFT_FREE_BYTES) if self._limit is None else min(self._limit, room)

    @contextlib.contextmanager
    def lend(
        self, path: Path, size: int, fetch: Callable[[BinaryIO], None], check: Callable[[], object]
    ) -> Iterator[int]:
        """Lend a descriptor of the copy at `path`, of `size` bytes; it is not removed meanwhile.

        Where there is none, wait for the process that fetches it, or make room and call `fetch` with an empty file.

        Raises:
            Exception: what `check` raises, which is called while this waits.
            OSError: the disk is full or broken.
        """
        while (descriptor := self._held(path, size)) is None:
            if (descriptor := self._fetched(path, size, fetch, check)) is not None:
                break
            _pause(check)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _held(self, path: Path, size: int) -> int | None:
        """Return a locked descriptor of a copy, which counts as used now; None if there is none."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # only who removes it holds it for itself, for a moment
        status = os.fstat(descriptor)
        if status.st_nlink == 0 or status.st_size != size:
            os.close(descriptor)
            return None
        os.utime(descriptor)
        return descriptor

    def _fetched(
        self, path: Path, size: int, fetch: Callable[[BinaryIO], None], check: Callable[[], object]
    ) -> int | None:
        """Fetch a copy and return a locked descriptor of it; None if another process is at work on it."""
        partial = path.with_name(f".{path.name}.partial")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock_alone(descriptor) or os.fstat(descriptor).st_nlink == 0:
                os.close(descriptor)
                return None
            if (held := self._held(path, size)) is not None:  # completed between the two looks
                partial.unlink(missing_ok=True)
                os.close(descriptor)
                return held
            try:
                self._reserve(descriptor, size, check)
                with open(descriptor, "wb", closefd=False) as file:
                    fetch(file)
                os.fsync(descriptor)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            partial.replace(path)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def _reserve(self, descriptor: int, size: int, check: Callable[[], object]) -> None:
        """Take `size` bytes of the disk for a file; the copies that were not used for the longest time make room."""
        os.ftruncate(descriptor, 0)
        while True:
            with self._locked():
                excess = sum(bytes_of for _, bytes_of, _ in self._copies()) + size - self.capacity()
                for _, bytes_of, path in sorted(self._copies()):
                    if excess <= 0:
                        break
                    excess -= bytes_of if _removed(path) else 0
                if excess <= 0:
                    os.posix_fallocate(descriptor, 0, size)
                    return
                if not any(bytes_of for _, bytes_of, _ in self._copies()):  # nothing will make room
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root))
            _pause(check)  # the rest is being read or fetched

    def _copies(self) -> list[tuple[float, int, Path]]:
        """Return the time of the last use, the size and the path of each copy; first those that are partial."""
        copies = []
        for pattern in (_PARTIAL, _COMPLETE):
            for path in self.root.glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    copies.append((0.0 if pattern == _PARTIAL else status.st_mtime, status.st_size, path))
        return copies

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _removed(path: Path) -> bool:
    """Remove a copy; return False if it is in use."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        if not _lock_alone(descriptor) or os.fstat(descriptor).st_nlink == 0:
            return False
        path.unlink()
        return True
    finally:
        os.close(descriptor)


def _lock_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pause(check: Callable[[], object]) -> None:
    check()
    time.sleep(POLL_SECONDS)
