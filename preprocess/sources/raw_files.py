"""Raw images as a build reads them: from a file, from an archive, or from a container that was unpacked once.

Shards are shuffled: without unpacking, every Parquet file or pickle would be decompressed for nearly every shard.
`<container>.records` holds the images' bytes back to back, `<container>.npy` the offsets of their beginnings and of
the end, `<container>.json` the fingerprint of the container.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import numpy as np

from atomic_files import atomic_write, partial_path
from errors import InputError
from preprocess.images.decoding import MAX_BYTES, UnreadableImage
from preprocess.run.pool import Tally
from preprocess.sources.catalogue import ArchiveRef, FileRef, ImageRef, RowRef
from preprocess.sources.source import Container
from preprocess.state.fingerprint import FileFingerprint, file_fingerprint


@dataclass(frozen=True)
class RawFiles:
    """The folders from which a build reads its images."""

    root: Path
    """The input folder."""
    scratch: Path
    """The folder into which containers are unpacked; needs as much disk space as the unpacked images."""

    def read(self, ref: ImageRef) -> bytes:
        """Read one raw image.

        Raises:
            UnreadableImage: the file cannot be read, the archive ends before the image does, or the file is larger
                than `MAX_BYTES`.
        """
        try:
            if isinstance(ref, RowRef):
                records, offsets, _ = self._unpacked(ref.file)
                begin, end = _load_offsets(offsets)[ref.row : ref.row + 2].tolist()
                return _read_span(records, begin, end - begin)
            if isinstance(ref, ArchiveRef):
                return _read_span(f"{self.root}/{ref.file}", ref.offset, ref.size)
            return _read_span(f"{self.root}/{ref.file}")
        except OSError as error:
            raise UnreadableImage(f"cannot be read: {error.strerror}") from error

    def head(self, ref: FileRef | ArchiveRef, size: int) -> bytes:
        """Read at most the first `size` bytes of an image that need not be unpacked; nothing if it cannot be read."""
        offset, length = (ref.offset, min(size, ref.size)) if isinstance(ref, ArchiveRef) else (0, size)
        try:
            with (self.root / ref.file).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        except OSError:
            return b""

    def fingerprints(self, refs: Iterable[ImageRef]) -> dict[str, FileFingerprint]:
        """Return the fingerprint of each file with images; for a container, its fingerprint when it was unpacked."""
        files = {ref.file: isinstance(ref, RowRef) for ref in refs}
        return {
            file: self._unpacked_fingerprint(file) if unpacked else file_fingerprint(self.root / file)
            for file, unpacked in files.items()
        }

    def unpack(self, container: Container, tally: Tally) -> None:
        """Write the records of one container atomically, unless they are already there for an unchanged container.

        Raises:
            InputError: the container cannot be read, or its number of rows has changed.
            OSError: the records cannot be written, e.g. a full disk.
        """
        path = self.root / container.file
        records, offsets, fingerprint_path = self._unpacked(container.file)
        now = file_fingerprint(path)
        if records.is_file() and offsets.is_file() and self._unpacked_fingerprint(container.file) == now:
            tally.count(container.rows)
            return
        self.scratch.mkdir(parents=True, exist_ok=True)
        fingerprint_path.unlink(missing_ok=True)
        begins = [0]
        with partial_path(records).open("wb") as file:
            for data in container.read(path):
                file.write(data)
                begins.append(begins[-1] + len(data))
                tally.count(size=len(data))
            file.flush()
            os.fsync(file.fileno())
        if len(begins) != container.rows + 1:
            raise InputError(
                f"{path} has {len(begins) - 1} rows instead of {container.rows}: it changed during the build; "
                "start again"
            )
        partial_path(records).replace(records)
        array = io.BytesIO()
        np.save(array, np.array(begins, np.int64))
        atomic_write(offsets, array.getvalue())
        atomic_write(fingerprint_path, json.dumps(now).encode())

    def _unpacked_fingerprint(self, container: str) -> FileFingerprint:
        try:
            size, time = json.loads(self._unpacked(container)[2].read_bytes())
        except (OSError, ValueError, TypeError):
            return None
        return size, time

    def _unpacked(self, container: str) -> tuple[Path, Path, Path]:
        """Return the paths of a container's records, offsets and fingerprint."""
        name = quote(container, safe="")  # containers in different folders may have the same name
        return self.scratch / f"{name}.records", self.scratch / f"{name}.npy", self.scratch / f"{name}.json"


@lru_cache(maxsize=1024)  # ImageNet has 308 Parquet files, of 35 KB of offsets each
def _load_offsets(path: Path) -> np.ndarray:
    return np.load(path)


def _read_span(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """Read `size` bytes from `offset` on; without a size, the complete file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        wanted = os.fstat(descriptor).st_size if size is None else size
        if wanted > MAX_BYTES:
            raise UnreadableImage(f"a file of {wanted >> 20} MiB, more than {MAX_BYTES >> 20}")
        data = os.pread(descriptor, wanted, offset)
    finally:
        os.close(descriptor)
    if len(data) < wanted:
        raise UnreadableImage(f"{len(data)} of {wanted} bytes: the file is truncated")
    return data
