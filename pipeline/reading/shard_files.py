"""The files of a data set: in a folder on disk, or in an object store by way of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from object_store import is_uri
from pipeline.reading.staging import StagedShards, Staging
from preprocess.manifest import Shard

OPEN_TARS = 64
"""File handles kept open; a shuffling window touches fewer shards than this."""


class LocalShards:
    """The tars and indexes in a folder, with the methods of `StagedShards`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tar = lru_cache(maxsize=OPEN_TARS)(lambda name: _OpenTar(folder / name))

    def has_index(self, shard: Shard) -> bool:  # noqa: ARG002
        """Tell that the index can be read without delay."""
        return True

    def index(self, shard: Shard) -> Path:
        """Return the path of an index."""
        return self._folder / shard.index

    @contextlib.contextmanager
    def open(self, shard: Shard) -> Iterator[int]:
        """Lend a file descriptor of a tar; raise `OSError` if it cannot be opened."""
        tar = self._tar(shard.tar)  # held until the read is done: letting go of it may close the file
        yield tar.descriptor

    def reserve(self, together: int | None) -> None:
        """Do nothing: they are here."""

    def prefetch(self, coming: Callable[[], Iterable[Shard]], then: Callable[[], Iterable[Shard]]) -> None:
        """Do nothing: they are here."""

    def close(self) -> None:
        """Close the tars; reading opens them again."""
        self._tar.cache_clear()


class _OpenTar:
    """A file handle that closes when the last thread that uses it lets go."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def open_shard_files(folder: Path | str, shards: Sequence[Shard], staging: Staging) -> LocalShards | StagedShards:
    """Return access to these shards of the data set at a path or URI.

    Raises:
        InputError: the staging folder cannot be written or is too small, or the store cannot be read.
    """
    return StagedShards(str(folder), shards, staging) if is_uri(folder) else LocalShards(Path(folder))
