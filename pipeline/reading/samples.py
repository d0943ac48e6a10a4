"""Random access to the samples of a split: where each lies in its tar, its JPEG bytes, label and key."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from errors import InputError
from object_store import join
from pipeline.reading.shard_files import open_shard_files
from pipeline.reading.staging import Staging
from preprocess.manifest import Manifest, Shard, indexed_samples, read_index


class SampleError(InputError):
    """A sample that cannot be read or decoded; the text names its shard and key, `index` is its number in the split."""

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

    Args:
        folder: path or URI of the data set.
        manifest: its description.
        split: name of the split.
        staging: where shards of an object store are copied to.

    Raises:
        InputError: no such split, or an index that is not one or counts other samples than the manifest.
    """

    def __init__(self, folder: Path | str, manifest: Manifest, split: str, staging: Staging | None = None) -> None:
        self._folder = str(folder)
        self._shards = manifest.split(split).shards
        self._classes = len(manifest.classes)
        self._short_side = manifest.short_side
        self.shard_samples = [shard.samples for shard in self._shards]
        self._ends = list(accumulate(self.shard_samples))
        self._files = open_shard_files(folder, self._shards, staging or Staging())
        for shard in self._shards:
            if self._files.has_index(shard):
                self._check_count(shard, indexed_samples(self._files.index(shard)))
        self._indexes: list[np.ndarray | None] = [None] * len(self._shards)
        self._sizes = np.zeros((len(self), 2), np.int32)  # 0: not known yet
        self._labels = np.zeros(len(self), np.int64)

    def __len__(self) -> int:
        """Count the samples of the split."""
        return self._ends[-1] if self._ends else 0

    def read(self, indices: np.ndarray) -> EncodedSamples:
        """Read samples by number.

        Raises:
            SampleError: a tar is gone or too short, a file is no JPEG or of another short side than the data set's,
                or a label is not one of the classes.
        """
        shards = self._shards_of(indices)
        entries = np.empty((len(indices), 4), np.int64)
        contents = [b""] * len(indices)
        starts = np.empty(len(indices), np.int64)
        for number in np.unique(shards).tolist():
            (here,) = np.nonzero(shards == number)
            with self._open(number, int(indices[here[0]])) as tar:
                rows = indices[here] - self._ends[number]  # counted from the end
                entries[here] = found = self._entries(number)[rows]
                starts[here] = found[:, ::2].min(axis=1)
                lengths = (found[:, ::2] + found[:, 1::2]).max(axis=1) - starts[here]
                for position, length in zip(here.tolist(), lengths.tolist(), strict=True):
                    contents[position] = self._read_span(tar, int(indices[position]), int(starts[position]), length)
        entries[:, ::2] -= starts[:, None]
        jpeg_spans = zip(contents, entries[:, 0].tolist(), entries[:, 1].tolist(), strict=True)
        jpegs = [memoryview(content)[at : at + size] for content, at, size in jpeg_spans]
        for position in np.flatnonzero(self._sizes[indices, 0] == 0).tolist():
            index, (_, _, at, size) = int(indices[position]), entries[position].tolist()
            self._labels[index] = self._label(index, contents[position][at : at + size])
            self._sizes[index] = self._size(index, jpegs[position])
        return EncodedSamples(jpegs, self._sizes[indices], self._labels[indices])

    def labels(self) -> np.ndarray:
        """Read the labels of all samples, int64 n.

        Raises:
            SampleError: a tar is gone or too short, or a label is not one of the classes.
        """
        labels, index = np.empty(len(self), np.int64), 0
        self.prefetch(lambda: np.arange(len(self)), lambda: np.arange(0))
        for number in range(len(self._shards)):
            with self._open(number, index) as tar:
                for start, length in self._entries(number)[:, 2:].tolist():
                    labels[index] = self._label(index, self._read_span(tar, index, start, length))
                    index += 1
        return labels

    def class_counts(self) -> np.ndarray:
        """Count the samples of each class, int64 classes; raises as `labels` does."""
        return np.bincount(self.labels(), minlength=self._classes)

    def example(self, index: int) -> StoredSample:
        """Return one sample as it lies in its tar.

        Raises:
            SampleError: as `read` does.
        """
        key = self._key(index)
        jpegs, _, labels = self.read(np.array([index]))
        return StoredSample(key, bytes(jpegs[0]), int(labels[0]))

    def describe(self, index: int) -> str:
        """Name the shard and the key of one sample, for messages."""
        shard = self._shards[bisect_right(self._ends, index)]
        return f"{join(self._folder, shard.tar)}: sample {self._key(index)}"

    def reserve(self, together: int | None) -> None:
        """Raise `InputError` if the disk has no room for so many shards of an object store; None: for all."""
        self._files.reserve(together)

    def prefetch(self, coming: Callable[[], np.ndarray], then: Callable[[], np.ndarray]) -> None:
        """Copy shards of an object store before they are needed; `then` gives the samples after those of `coming`."""
        self._files.prefetch(lambda: self._in_order_of_need(coming()), lambda: self._in_order_of_need(then()))

    def close(self) -> None:
        """Close the tars; reading opens them again."""
        self._files.close()

    def _shards_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends, indices, side="right")

    def _in_order_of_need(self, indices: np.ndarray) -> list[Shard]:
        numbers, first = np.unique(self._shards_of(indices), return_index=True)
        return [self._shards[number] for number in numbers[np.argsort(first)].tolist()]

    def _key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return read_index(self._files.index(self._shards[number]))[index - self._ends[number]].key

    @contextmanager
    def _open(self, number: int, index: int) -> Iterator[int]:
        """Lend a file descriptor of a tar, of which the sample `index` is to be read."""
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(self._files.open(self._shards[number]))
            except OSError as error:
                raise self._unreadable(index, error) from error
            yield descriptor

    def _read_span(self, descriptor: int, index: int, start: int, length: int) -> bytes:
        try:
            content = os.pread(descriptor, length, start)
        except OSError as error:
            raise self._unreadable(index, error) from error
        if len(content) < length:
            missing = length - len(content)
            raise SampleError(f"{self.describe(index)} is cut off: the tar ends {missing} bytes early", index)
        return content

    def _unreadable(self, index: int, error: OSError) -> SampleError:
        return SampleError(f"{self.describe(index)} cannot be read: {error}", index)

    def _label(self, index: int, label: bytes) -> int:
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

    def _entries(self, number: int) -> np.ndarray:
        """Return offset and size of the JPEG, then of the label, of each sample of a shard: int64 n,4."""
        entries = self._indexes[number]
        if entries is None:
            shard = self._shards[number]
            samples = read_index(self._files.index(shard))
            self._check_count(shard, len(samples))
            entries = self._indexes[number] = np.array([sample[1:] for sample in samples], np.int64)
        return entries

    def _check_count(self, shard: Shard, count: int) -> None:
        if count != shard.samples:
            raise InputError(
                f"{join(self._folder, shard.index)} lists {count} samples where the manifest says {shard.samples}: "
                "build the shards again"
            )


def jpeg_size(jpeg: bytes | memoryview) -> tuple[int, int]:
    """Return height and width of a JPEG file in pixels; raise `ValueError` if it has no JPEG header."""
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    return height, width
