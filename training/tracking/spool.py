"""Unsent updates of a run: files in its storage, STORAGE/RUN_ID/unsent, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from atomic_files import atomic_write
from errors import InputError
from object_store import join, open_filesystem
from typed_json import parse_json, to_json_values

SPOOL_BYTES = 64 << 20
"""Size of a writer's files from which the oldest are dropped: a million points, or days without a server."""
_NAME = re.compile(r"(.+)-(\d{8,})-[0-9a-f]{8}\.json")

Point = tuple[str, float, int, int]
"""Name of a metric, value, time in milliseconds since 1970, step."""


@dataclass(frozen=True)
class RunUpdate:
    """Something that a run is to be given."""

    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    """The state in which it ended, if it did."""
    end_time: int | None = None
    """Milliseconds since 1970."""


class Spool:
    """The updates of one writer, oldest first; one process at a time writes under a name, with all its threads.

    `storage` is an absolute path or a URI.
    """

    def __init__(self, storage: str, run_id: str, writer: str) -> None:
        self._filesystem, self._folder = _open(storage, run_id)
        self._writer = writer
        self._token = uuid.uuid4().hex[:8]  # so that one that counts as dead, and is not, overwrites nothing
        self._sizes: dict[str, int] = {}
        """Names of the files, oldest first, and their sizes in bytes."""
        for name, size in sorted(_files(self._filesystem, self._folder)):
            if _parts(name)[0] == writer:
                self._sizes[name] = size
        self._lent: set[str] = set()
        self._next = max((_parts(name)[1] for name in self._sizes), default=0) + 1
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._sizes)

    def append(self, update: RunUpdate) -> int:
        """Write an update to disk; return how many points were dropped to make room for it.

        Raises:
            OSError: it cannot be written.
        """
        page = json.dumps(to_json_values(update), separators=(",", ":")).encode()
        dropped = 0
        with self._lock:
            name = f"{self._writer}-{self._next:08d}-{self._token}.json"
            self._write(name, page)
            self._sizes[name] = len(page)
            self._next += 1
            # Those that are on their way are not dropped: MLflow may have them already.
            for oldest in [name for name in self._sizes if name not in self._lent][:-1]:
                if sum(self._sizes.values()) <= SPOOL_BYTES:
                    break
                dropped += len(self._read(oldest).points)
                self.remove([oldest])
        return dropped

    def oldest(self, limit: int) -> tuple[RunUpdate, list[str]]:
        """Return the oldest updates as one, of some `limit` points, and the names of their files.

        Raises:
            OSError: they cannot be read.
        """
        names: list[str] = []
        merged = RunUpdate()
        with self._lock:
            for name in self._sizes:
                if len(merged.points) >= limit:
                    break
                merged = _merge(merged, self._read(name))
                names.append(name)
            self._lent = set(names)
        return merged, names

    def remove(self, names: list[str]) -> None:
        """Remove files; raise `OSError` if they cannot be."""
        with self._lock:
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # another process has sent it as well
                    self._filesystem.delete_file(f"{self._folder}/{name}")
                self._sizes.pop(name, None)

    def _write(self, name: str, page: bytes) -> None:
        if isinstance(self._filesystem, LocalFileSystem):
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            atomic_write(Path(self._folder, name), page)
            return
        if not self._sizes:
            self._filesystem.create_dir(self._folder)
        with self._filesystem.open_output_stream(f"{self._folder}/{name}") as stream:
            stream.write(page)

    def _read(self, name: str) -> RunUpdate:
        try:
            with self._filesystem.open_input_stream(f"{self._folder}/{name}") as stream:
                return parse_json(RunUpdate, stream.read(), name)
        except (FileNotFoundError, InputError):  # sent by another process, or cut off: its writer will write it again
            return RunUpdate()


def unsent_folder(storage: str, run_id: str) -> str:
    """Return the path or URI of a run's unsent updates."""
    return join(storage, run_id, "unsent")


def writers(storage: str, run_id: str) -> list[str]:
    """Return the names of those who have left updates behind."""
    return sorted({_parts(name)[0] for name, _ in _files(*_open(storage, run_id))})


def count_points(storage: str, run_id: str) -> int:
    """Return how many points of a run wait in its storage."""
    spools = [Spool(storage, run_id, writer) for writer in writers(storage, run_id)]
    return sum(len(spool.oldest(sys.maxsize)[0].points) for spool in spools)


def has_storage(storage: str, run_id: str) -> bool:
    """Tell whether the folder of a run is to be found here."""
    filesystem, folder = _open(storage, run_id)
    return filesystem.get_file_info(folder.removesuffix("/unsent")).type == FileType.Directory


def _merge(first: RunUpdate, then: RunUpdate) -> RunUpdate:
    return RunUpdate(
        first.points + then.points,
        first.tags | then.tags,
        then.status or first.status,
        then.end_time or first.end_time,
    )


def _open(storage: str, run_id: str) -> tuple[FileSystem, str]:
    filesystem, path = open_filesystem(unsent_folder(storage, run_id))
    return filesystem, path


def _files(filesystem: FileSystem, folder: str) -> list[tuple[str, int]]:
    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    return [(info.base_name, info.size) for info in found if _NAME.fullmatch(info.base_name)]


def _parts(name: str) -> tuple[str, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return match[1], int(match[2])
