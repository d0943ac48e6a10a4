"""Shards: USTAR archives of `<key>.jpg` and `<key>.cls`, each with DALI's index.

The same samples give the same bytes: no times, no owners, fixed modes. Index and SHA-256 are computed while writing,
and a shard gets its name only when all of it is on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE
from urllib.parse import quote

from atomic_files import atomic_write, partial_path
from errors import InputError
from preprocess.manifest import IndexEntry, Shard, index_text

MAX_KEY_BYTES = 96  # a USTAR name without the prefix field, less the ending
_KEY_DIGEST_CHARACTERS = 16
_SYNC_BYTES = 4 << 20  # flushed at a time by a thread, so that `commit` need not wait for all


def shard_stem(split: str, number: int) -> str:
    """Return the name of a shard without its ending, e.g. `train-000042`."""
    return f"{split}-{number:06d}"


def label_width(num_classes: int) -> int:
    """Return the number of digits of every label: `.cls` files of one length make dense batches."""
    return len(str(num_classes - 1))


def sample_keys(canonical_names: Sequence[str]) -> list[str]:
    """Return one key for each of these different canonical names, unique among them, in their order.

    A key is the canonical name without its ending, percent-encoded so that it holds ASCII but no dot, no space and no
    control character: `urllib.parse.unquote` leads back to the file. WebDataset and DALI take everything after the
    first dot for the ending, hence no dots. Names that differ only in the ending keep it (`a%2Ejpg` and `a%2Epng`).
    A key over `MAX_KEY_BYTES` is cut and ends in a digest of the complete name.
    """
    keys = [_key(posixpath.splitext(name)[0], name) for name in canonical_names]
    while True:
        count = Counter(keys)
        if len(count) == len(keys):
            return keys
        keys = [key if count[key] == 1 else _key(name, name) for key, name in zip(keys, canonical_names, strict=True)]


def _key(text: str, canonical_name: str) -> str:
    # Undecodable bytes of a file name are surrogates in a str; fsencode gives the bytes back.
    key = quote(os.fsencode(text), safe="/").replace(".", "%2E")
    if len(key) <= MAX_KEY_BYTES:
        return key
    digest = hashlib.sha256(os.fsencode(canonical_name)).hexdigest()[:_KEY_DIGEST_CHARACTERS]
    head = key[: MAX_KEY_BYTES - 1 - len(digest)]
    return f"{re.sub(r'%[0-9A-F]?$', '', head)}~{digest}"


def index_of(tar_path: Path) -> str:
    """Return the text of the index of a tar, computed from the tar.

    Raises:
        tarfile.TarError: it is not a complete tar.
        ValueError: its files are not pairs of an image and its label with the same key.
    """
    with tarfile.open(tar_path, "r:") as tar:
        members = tar.getmembers()
    if len(members) % 2:
        raise ValueError(f"{members[-1].name} is one file too many")
    entries = []
    for image, label in zip(members[::2], members[1::2], strict=True):
        key = image.name.partition(".")[0]
        if (image.name, label.name) != (f"{key}.jpg", f"{key}.cls"):
            raise ValueError(f"{image.name} is not an image that is followed by its label")
        entries.append(IndexEntry(key, image.offset_data, image.size, label.offset_data, label.size))
    return index_text(entries)


class ShardWriter(contextlib.AbstractContextManager["ShardWriter"]):
    """Writer of one shard, `<stem>.tar` and `<stem>.idx`, under temporary names until `commit`.

    As a context manager, it leaves nothing behind unless its body commits.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        """Open `.<stem>.tar.partial` in `folder`."""
        self._tar_path = folder / f"{stem}.tar"
        self._index_path = folder / f"{stem}.idx"
        self._file = partial_path(self._tar_path).open("wb")
        self._size = 0
        self._digest = hashlib.sha256()
        self._index: list[IndexEntry] = []
        self._synced = 0
        self._thread = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None

    @property
    def samples(self) -> int:
        """Number of samples added."""
        return len(self._index)

    def add(self, key: str, image: bytes, label: str) -> None:
        """Append one sample: JPEG bytes, and the label in zero-padded ASCII."""
        blocks, offsets, end = [], [], self._size
        for ending, data in (("jpg", image), ("cls", label.encode("ascii"))):
            blocks += [_header(f"{key}.{ending}", len(data)), data, bytes(-len(data) % BLOCKSIZE)]
            offsets.append(end + BLOCKSIZE)
            end += sum(map(len, blocks[-3:]))
        self._write(b"".join(blocks))
        self._index.append(IndexEntry(key, offsets[0], len(image), offsets[1], len(label)))

    def commit(self, expected: Shard | None = None) -> Shard:
        """Finish tar and index; flush each to disk, then rename it.

        Raises:
            InputError: the shard differs from `expected`; nothing is renamed.
        """
        self._write(bytes(2 * BLOCKSIZE))
        self._write(bytes(-self._size % RECORDSIZE))
        self._file.flush()
        self._end_sync()
        os.fsync(self._file.fileno())
        self._file.close()
        shard = Shard(
            tar=self._tar_path.name,
            index=self._index_path.name,
            samples=self.samples,
            bytes=self._size,
            sha256=self._digest.hexdigest(),
        )
        if expected not in (None, shard):
            raise InputError(
                f"{self._tar_path} is built with different bytes than in the manifest: the source or the version of a "
                "library has changed; use another --output, or remove the folder"
            )
        atomic_write(self._index_path, index_text(self._index).encode("ascii"))
        partial_path(self._tar_path).replace(self._tar_path)
        return shard

    def __exit__(self, *error: object) -> None:
        """Close and remove whatever was not committed."""
        self._thread.shutdown()
        with contextlib.suppress(OSError):  # closing flushes, which fails on a full disk
            self._file.close()
        partial_path(self._tar_path).unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
        self._size += len(data)
        if self._size - self._synced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._end_sync()
            self._synced = self._size
            self._syncing = self._thread.submit(os.fdatasync, self._file.fileno())

    def _end_sync(self) -> None:
        if self._syncing is not None:
            self._syncing.result()  # the system reports an error of the disk only once


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, user and group unnamed, the mode is 0644
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii")
