"""The bytes of one raw image, wherever they are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from preprocess.images import UnreadableImage
from preprocess.sources.catalogue import Place, Span, Whole
from preprocess.sources.records import record_span


@dataclass(frozen=True)
class RawFiles:
    """Where a build reads its images."""

    root: Path
    """The input folder."""
    scratch: Path
    """The folder into which containers were unpacked."""

    def read(self, place: Place) -> bytes:
        """Read one raw image; raise `UnreadableImage` as `read_image` does."""
        return read_image(self.root, self.scratch, place)


def read_image(root: Path, scratch: Path, place: Place) -> bytes:
    """Read one raw image.

    Args:
        root: the input folder.
        scratch: the folder into which containers were unpacked.
        place: where the image is.

    Raises:
        UnreadableImage: the system says no, or the archive ends before the image does.
    """
    try:
        if isinstance(place, Whole):
            return (root / place.file).read_bytes()
        if isinstance(place, Span):
            return _read_span(root / place.file, place.offset, place.size)
        return _read_span(*record_span(scratch, place))
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error


def _read_span(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise UnreadableImage(f"{len(data)} of {size} bytes: its archive ends there")
    return data
