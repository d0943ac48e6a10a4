"""Random access to the samples of a split: where each lies in its tar, its JPEG bytes, label and key."""

from __future__ import annotations

import os
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from errors import InputError
from preprocess.manifest import Manifest, Shard, indexed_samples, read_index

OPEN_TARS = 64
"""File handles kept open; a shuffling window touches fewer shards than this."""


class SampleError(InputError):
    """A sample that cannot be read or decoded; the text names its shard and key.

    Args:
        text: which sample, and what is wrong with it.
        index: its number in the split.
    """

    def __init__(self, text: str, index: int) -> None:
        super().__init__(text)
        self.index = index


class EncodedSamples(NamedTuple):
    """Samples as they were read."""

    jpegs: list[memoryview]
    """The JPEG files, read-only."""
    sizes: np.ndarray
    """Height and width of their images in pixels, int32 n,2."""
    labels: np.ndarray
    """int64 n."""


class _Span(NamedTuple):
    """Where a sample lies in its tar, in bytes."""

    start: int
    length: int
    jpeg_at: int
    """From `start` on, as `label_at`."""
    jpeg_bytes: int
    label_at: int
    label_bytes: int


class StoredSample(NamedTuple):
    """One stored sample."""

    key: str
    """Leads back to the source file."""
    jpeg: bytes
    label: int


class Samples:
    """The samples of one split in the order of its shards, numbered from 0.

    Indexes are read when a sample of their shard is first asked for; size and label are taken from a sample when it is
    read for the first time. Safe to use from several threads.

    Raises:
        InputError: no such split, or an index that is not one or counts other samples than the manifest.
    """

    def __init__(self, folder: Path | str, manifest: Manifest, split: str) -> None:
        self._folder = Path(folder)
        self._shards = manifest.split(split).shards
        self._classes = len(manifest.classes)
        self._short_side = manifest.short_side
        self.shard_samples = [shard.samples for shard in self._shards]
        self._ends = list(accumulate(self.shard_samples))
        for shard in self._shards:
            self._check_count(shard, indexed_samples(self._folder / shard.index))
        self._tables: list[np.ndarray | None] = [None] * len(self._shards)
        self._sizes = np.zeros((len(self), 2), np.int32)  # 0: not known yet
        self._labels = np.zeros(len(self), np.int64)
        paths = [self._folder / shard.tar for shard in self._shards]
        self._open = lru_cache(maxsize=OPEN_TARS)(lambda number: _OpenTar(paths[number]))

    def __len__(self) -> int:
        """Count the samples of the split."""
        return self._ends[-1] if self._ends else 0

    def read(self, indices: np.ndarray) -> EncodedSamples:
        """Read samples by number.

        Raises:
            SampleError: a tar is gone or too short, a file is no JPEG or of another short side than the data set's,
                or a label is not one of the classes.
        """
        numbers, spans = self._spans(indices)
        starts, lengths, begins, sizes = spans[:, :4].T.tolist()
        locations = zip(indices.tolist(), numbers.tolist(), starts, lengths, strict=True)
        contents = [self._read_span(*location) for location in locations]
        jpegs = [memoryview(content)[at : at + size] for content, at, size in zip(contents, begins, sizes, strict=True)]
        for place in np.flatnonzero(self._sizes[indices, 0] == 0).tolist():
            index = int(indices[place])
            self._labels[index] = self._label(index, contents[place], _Span(*spans[place].tolist()))
            self._sizes[index] = self._size(index, jpegs[place])
        return EncodedSamples(jpegs, self._sizes[indices], self._labels[indices])

    def example(self, index: int) -> StoredSample:
        """Return one sample as it lies in its tar.

        Raises:
            SampleError: as `read` does.
        """
        number, row = self._locate(index)
        span = _Span(*self._table(number)[row].tolist())
        content = self._read_span(index, number, span.start, span.length)
        return StoredSample(self._key(index), bytes(_jpeg(content, span)), self._label(index, content, span))

    def describe(self, index: int) -> str:
        """Name the shard and the key of one sample, for messages."""
        number, _ = self._locate(index)
        return f"{self._folder / self._shards[number].tar}: sample {self._key(index)}"

    def close(self) -> None:
        """Close the tars; reading opens them again."""
        self._open.cache_clear()

    def _key(self, index: int) -> str:
        number, row = self._locate(index)
        return read_index(self._folder / self._shards[number].index)[row].key

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.shard_samples[number]

    def _spans(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard of each sample (n) and where it lies in that (n,6, as in `_table`)."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        spans = np.empty((len(indices), len(_Span._fields)), np.int64)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            first = self._ends[number] - self.shard_samples[number]
            spans[here] = self._table(number)[indices[here] - first]
        return numbers, spans

    def _read_span(self, index: int, number: int, start: int, length: int) -> bytes:
        try:
            tar = self._open(number)  # held until the read is done: letting go of it may close the file
            content = os.pread(tar.descriptor, length, start)
        except OSError as error:
            raise SampleError(f"{self.describe(index)} cannot be read: {error}", index) from error
        if len(content) < length:
            missing = length - len(content)
            raise SampleError(f"{self.describe(index)} is cut off: the tar ends {missing} bytes early", index)
        return content

    def _label(self, index: int, content: bytes, span: _Span) -> int:
        label = content[span.label_at : span.label_at + span.label_bytes]
        if not label.isdigit() or int(label) >= self._classes:
            raise SampleError(f"{self.describe(index)} has label {label!r}; use 0 to {self._classes - 1}", index)
        return int(label)

    def _size(self, index: int, jpeg: memoryview) -> tuple[int, int]:
        try:
            height, width = jpeg_size(jpeg)
        except ValueError as error:
            raise SampleError(f"{self.describe(index)} does not decode: it is not a JPEG file", index) from error
        if min(height, width) != self._short_side:
            raise SampleError(
                f"{self.describe(index)} has {width} x {height} pixels where the short side is {self._short_side}: "
                "build the shards again",
                index,
            )
        return height, width

    def _table(self, number: int) -> np.ndarray:
        """Return the `_Span` of each sample of a shard: int64 n,6."""
        table = self._tables[number]
        if table is None:
            shard = self._shards[number]
            entries = read_index(self._folder / shard.index)
            self._check_count(shard, len(entries))
            files = np.array([entry[1:] for entry in entries], np.int64).reshape(-1, 4)
            table = self._tables[number] = _spans_of(files)
        return table

    def _check_count(self, shard: Shard, count: int) -> None:
        if count != shard.samples:
            raise InputError(
                f"{self._folder / shard.index} lists {count} samples where the manifest says {shard.samples}: "
                "build the shards again"
            )


def jpeg_size(jpeg: bytes | memoryview) -> tuple[int, int]:
    """Return height and width of a JPEG file in pixels; raise `ValueError` if it has no JPEG header."""
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    return height, width


class _OpenTar:
    """A file handle that closes when the last thread that uses it lets go."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _jpeg(content: bytes, span: _Span) -> memoryview:
    return memoryview(content)[span.jpeg_at : span.jpeg_at + span.jpeg_bytes]


def _spans_of(files: np.ndarray) -> np.ndarray:
    """Return `_Span`s from offset and size of the JPEG, offset and size of the label, n,4."""
    begins, sizes = files[:, ::2], files[:, 1::2]
    starts = begins.min(axis=1, keepdims=True)
    lengths = (begins + sizes).max(axis=1, keepdims=True) - starts
    relative = np.stack([begins - starts, sizes], axis=-1).reshape(-1, 4)
    return np.hstack([starts, lengths, relative])
