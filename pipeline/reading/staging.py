"""Shards of an object store, copied to the local disk before the loader needs them."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from atomic_files import atomic_write
from errors import InputError, check_count
from object_store import StoreError, StoreFolder, cache_folder, join
from pipeline.reading.staging_folder import StagingFolder
from preprocess.manifest import Shard, manifest_digest

DOWNLOADS = 8
"""Shards that a process copies at the same time."""


class ClosedError(RuntimeError):
    """The reader of a copy has been closed."""


@dataclass(frozen=True)
class Staging:
    """Where the shards of an object store are copied to, and how much of the disk they may take."""

    folder: str | None = None
    """Default: `twotower/shards` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    bytes: int | None = None
    """Of all shards there together. Default: the free space of the disk but for a gibibyte."""

    def __post_init__(self) -> None:
        if self.bytes is not None:
            check_count("staging_bytes", self.bytes, 1)

    def open(self) -> StagingFolder:
        """Return the folder, which is made if it is not there; raise `InputError` if it cannot be written."""
        return StagingFolder(Path(self.folder or cache_folder("shards")), self.bytes)


class StagedShards:
    """The tars and indexes of a data set in an object store, by way of a folder on disk; threads may share it.

    A data set has a folder of its own there, named by the digest of its manifest: one that is replaced in the store
    does not mix with what is here. A tar is read only after its SHA-256 was compared with the manifest.
    """

    def __init__(self, uri: str, shards: Sequence[Shard], staging: Staging) -> None:
        self._uri, self._shards = uri, shards
        self._store = StoreFolder(uri)
        self._staging = staging.open()
        self._folder = self._staging.root / manifest_digest(uri)[:16]
        self._folder.mkdir(exist_ok=True)
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._coming: deque[Shard] = deque()
        self._then: Callable[[], Iterable[Shard]] | None = None
        self._ahead: dict[str, Shard] = {}
        """Shards that were taken from `_coming`, and not read since, by the tar's name."""
        self._ahead_bytes = 0
        """Most bytes of `_ahead`: more would push out what is in use."""
        self._together: int | None = 1
        self._error: InputError | None = None
        """First failure of a thread, which ends the others."""

    def has_index(self, shard: Shard) -> bool:
        """Tell whether the index is here."""
        return (self._folder / shard.index).is_file()

    def index(self, shard: Shard) -> Path:
        """Return the path of an index, which is copied first if it is not here."""
        path = self._folder / shard.index
        if not path.is_file():
            with self._disk_errors():
                atomic_write(path, b"".join(self._store.parts(shard.index)))
        return path

    @contextlib.contextmanager
    def open(self, shard: Shard) -> Iterator[int]:
        """Lend a file descriptor of a tar, which is copied first if it is not here.

        Raises:
            StoreError: the store does not give it, or gives other content than the manifest says.
            InputError: the disk is full.
        """
        with self._changed:
            self._ahead.pop(shard.tar, None)
            if shard in self._coming:  # the readers are faster
                self._coming.remove(shard)
            self._changed.notify_all()
        with self._staged(shard) as descriptor:
            yield descriptor

    def reserve(self, together: int | None) -> None:
        """Raise `InputError` unless there is room for so many shards, which are read in turns; None: for all."""
        needed, capacity = self._bytes_of(together), self._staging.capacity()
        if needed > capacity:
            raise InputError(
                f"staging_bytes is {capacity} in {self._staging.root}: the {together or len(self._shards)} shards that "
                f"are read in turns have up to {needed} bytes; use at least that, or another staging folder"
            )
        self._together = together

    def prefetch(self, coming: Callable[[], Iterable[Shard]], then: Callable[[], Iterable[Shard]]) -> None:
        """Copy shards in this order, as far ahead of those that are read as there is room; forget earlier calls.

        `then` gives those of the next epoch; it is called when all of this one are here, unless all stay here anyway.
        """
        capacity, complete = self._staging.capacity(), self._bytes_of(None)
        with self._changed:
            self._ahead_bytes = capacity if complete <= capacity else capacity - self._bytes_of(self._together)
            self._coming = deque(coming())
            self._then = None if complete <= capacity else then
            self._ahead.clear()
            self._error = None
            self._changed.notify_all()
        while len(self._threads) < DOWNLOADS:
            # Daemons: a command that ends does not wait for what it no longer needs.
            thread = threading.Thread(target=self._copy_ahead, name="staging", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads; what is asked for later is copied without them."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def _bytes_of(self, together: int | None) -> int:
        """Return the bytes of the largest so many shards."""
        return sum(sorted((shard.bytes for shard in self._shards), reverse=True)[:together])

    def _copy_ahead(self) -> None:
        while True:
            with self._changed:
                while not self._closed.is_set() and (shard := self._next()) is None:
                    self._changed.wait()
            if self._closed.is_set():
                return
            assert shard is not None
            try:
                with self._staged(shard):
                    pass
            except ClosedError:
                return
            except InputError:  # whoever reads a shard raises it
                with self._changed:
                    self._coming.clear()
                    self._then = None

    def _next(self) -> Shard | None:
        """Return the next shard to copy; None if there is none, or no room."""
        if not self._coming and self._then is not None:
            then, self._then = self._then, None
            self._coming = deque(then())
        if not self._coming:
            return None
        shard = self._coming[0]
        if sum(one.bytes for one in self._ahead.values()) + shard.bytes > self._ahead_bytes:
            return None
        self._ahead[shard.tar] = self._coming.popleft()
        return shard

    @contextlib.contextmanager
    def _staged(self, shard: Shard) -> Iterator[int]:
        path = self._folder / shard.tar

        def fetch(file: BinaryIO) -> None:
            self.index(shard)
            self._fetch(shard, file)

        with contextlib.ExitStack() as stack:
            try:
                with self._disk_errors():
                    descriptor = stack.enter_context(self._staging.lend(path, shard.bytes, fetch, self._check))
            except InputError as error:
                self._error = error
                raise
            yield descriptor

    def _check(self) -> None:
        """Raise what ends the work of all threads."""
        if self._error is not None:
            raise self._error
        if self._closed.is_set():
            raise ClosedError

    def _fetch(self, shard: Shard, file: BinaryIO) -> None:
        for _ in range(2):  # what a network has changed is right the second time
            file.seek(0)
            digest, size = hashlib.sha256(), 0
            for part in self._store.parts(shard.tar):
                self._check()
                digest.update(part)
                size += file.write(part)
            file.flush()
            if (size, digest.hexdigest()) == (shard.bytes, shard.sha256):
                return
        tar = join(self._uri, shard.tar)
        raise StoreError(f"{tar} has another SHA-256 than the manifest says; upload it again, manifest.json last")

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"staging is {self._staging.root}: a shard cannot be written: {reason}; use another folder, or fewer "
                "staging_bytes"
            ) from error
