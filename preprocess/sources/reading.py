"""Reading of a raw image from a file, an archive or an unpacked container."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocess.images.decoding import MAX_BYTES, UnreadableImage
from preprocess.sources.catalogue import ArchiveRef, FileRef, ImageRef, RowRef
from preprocess.sources.records import record_span, unpacked_fingerprint
from preprocess.state.fingerprint import FileFingerprint, file_fingerprint


@dataclass(frozen=True)
class RawFiles:
    """The folders from which a build reads its images."""

    root: Path
    """The input folder."""
    scratch: Path
    """The folder into which containers were unpacked."""

    def read(self, ref: ImageRef) -> bytes:
        """Read one raw image; raise `UnreadableImage` as `read_image` does."""
        return read_image(self.root, self.scratch, ref)

    def fingerprints(self, refs: Iterable[ImageRef]) -> dict[str, FileFingerprint]:
        """Return the fingerprint of each file with images; of a container, as it was when it was unpacked."""
        files = {ref.file: isinstance(ref, RowRef) for ref in refs}
        return {
            file: unpacked_fingerprint(self.scratch, file) if unpacked else file_fingerprint(self.root / file)
            for file, unpacked in files.items()
        }


def read_image(root: Path, scratch: Path, ref: ImageRef) -> bytes:
    """Read one raw image.

    Args:
        root: the input folder.
        scratch: the folder into which containers were unpacked.
        ref: location of the image.

    Raises:
        UnreadableImage: the file cannot be read, the archive ends before the image does, or the file is larger
            than `MAX_BYTES`.
    """
    try:
        if isinstance(ref, FileRef):
            return _read_span(f"{root}/{ref.file}")
        if isinstance(ref, ArchiveRef):
            return _read_span(f"{root}/{ref.file}", ref.offset, ref.size)
        return _read_span(*record_span(scratch, ref))
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error


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
        raise UnreadableImage(f"{len(data)} of {wanted} bytes: its archive ends there")
    return data
