"""Locations of the members of a tar, from its headers only: their content is not read."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from errors import InputError

_BUFFER = 1024  # bytes: a header is 512, and what follows it is the body that nobody reads
_SIZE, _CHECKSUM, _TYPE, _PREFIX = slice(124, 136), slice(148, 156), slice(156, 157), 345  # in a header


class Member(NamedTuple):
    """One member of a tar."""

    name: str
    offset: int
    """Of its first byte in the file that the tar is, or is a part of."""
    size: int
    """In bytes."""
    plain: bool
    """True for a regular file; False for folders, links and sparse files."""


def open_tar(path: Path) -> BinaryIO:
    """Open a file for `read_members`; raise `InputError` if it cannot be opened."""
    try:
        return path.open("rb", buffering=_BUFFER)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_members(file: BinaryIO, path: Path, begin: int = 0, end: int | None = None) -> Iterator[Member]:
    """Yield in order the members of the tar in bytes `begin` to `end` of `file`; None is the end of the file.

    Headers of plain files are parsed here, four times as fast as in `tarfile`; from the first other one on (GNU and
    PAX extensions, links, the end) `tarfile` takes over.

    `file` comes from `open_tar`, and `path` names the tar in messages.

    Raises:
        InputError: it is not a tar, or does not end as one does.
    """
    try:
        position = begin
        while (found := _parse_plain(os.pread(file.fileno(), tarfile.BLOCKSIZE, position))) is not None:
            name, size = found
            _check_end(position + tarfile.BLOCKSIZE + size, end)
            yield Member(name, position + tarfile.BLOCKSIZE, size, True)
            position += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        # A TarFile starts from where the file is, and counts from the file's beginning.
        file.seek(position)
        with tarfile.TarFile(fileobj=file) as tar:
            for info in tar:
                _check_end(info.offset_data + info.size, end)
                yield Member(info.name, info.offset_data, info.size, info.isreg() and info.sparse is None)
            # tarfile accepts an end without mark and a broken header as ends.
            mark = os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset)
            if mark != bytes(tarfile.BLOCKSIZE) or (end is not None and tar.offset >= end):
                raise tarfile.ReadError(f"neither header nor end mark at byte {tar.offset - begin}")
    except tarfile.TarError as error:
        raise InputError(f"{path} is truncated or not a tar: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _check_end(position: int, end: int | None) -> None:
    if end is not None and position > end:
        raise tarfile.ReadError("unexpected end of data")


def _parse_plain(header: bytes) -> tuple[str, int] | None:
    """Return name and size from the header of a plain file with a short name; None for anything else."""
    if len(header) < tarfile.BLOCKSIZE or header[_TYPE] != tarfile.REGTYPE or header[_PREFIX]:
        return None
    try:
        size, checksum = (int(header[field].partition(b"\0")[0], 8) for field in (_SIZE, _CHECKSUM))
    except ValueError:  # not octal: over 8 GiB, or broken
        return None
    blank = 8 * ord(" ")  # what the checksum's own field counts as
    if size < 0 or sum(header) - sum(header[_CHECKSUM]) + blank != checksum:
        return None
    return os.fsdecode(header[:100].partition(b"\0")[0]), size
