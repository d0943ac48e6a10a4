"""Random access to the samples of a split: where each lies in its tar, its JPEG bytes, label and key."""

from __future__ import annotations

import os
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.jpeg_size import jpeg_size
from preprocess.manifest import InputError, Manifest, Shard

INDEX_VERSION = "v1.2"
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


class Files(NamedTuple):
    """Samples as they were read."""

    jpegs: list[np.ndarray]
    """The JPEG files, read-only uint8."""
    sizes: np.ndarray
    """Height and width of their images in pixels, int32 n,2."""
    labels: np.ndarray
    """int64 n."""


class Example(NamedTuple):
    """One stored sample."""

    key: str
    """Leads back to the source file."""
    jpeg: bytes
    label: int


class Samples:
    """The samples of one split in the order of its shards, numbered from 0.

    Indexes are read when a sample of their shard is first asked for. Safe to use from several threads.

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
            self._check_header(shard)
        self._tables: list[np.ndarray | None] = [None] * len(self._shards)
        paths = [self._folder / shard.tar for shard in self._shards]
        self._open = lru_cache(maxsize=OPEN_TARS)(lambda number: _OpenTar(paths[number]))

    def __len__(self) -> int:
        """Count the samples of the split."""
        return self._ends[-1] if self._ends else 0

    def read(self, indices: np.ndarray) -> Files:
        """Read samples by number.

        Raises:
            SampleError: a tar is gone or too short, a file is no JPEG or of another short side than the data set's,
                or a label is not one of the classes.
        """
        jpegs: list[np.ndarray] = []
        sizes, labels = np.empty((len(indices), 2), np.int32), np.empty(len(indices), np.int64)
        numbers, spans = self._spans(indices)
        rows = zip(indices.tolist(), numbers.tolist(), spans.tolist(), strict=True)
        for place, (index, number, span) in enumerate(rows):
            jpeg, labels[place] = self._read_span(index, number, span)
            sizes[place] = self._size(index, jpeg)
            jpegs.append(np.frombuffer(jpeg, np.uint8))
        return Files(jpegs, sizes, labels)

    def example(self, index: int) -> Example:
        """Return one sample as it lies in its tar.

        Raises:
            SampleError: as `read` does.
        """
        number, row = self._locate(index)
        jpeg, label = self._read_span(index, number, self._table(number)[row].tolist())
        return Example(self._key(index), bytes(jpeg), label)

    def describe(self, index: int) -> str:
        """Name the shard and the key of one sample, for messages."""
        number, _ = self._locate(index)
        return f"{self._folder / self._shards[number].tar}: sample {self._key(index)}"

    def close(self) -> None:
        """Close the tars; reading opens them again."""
        self._open.cache_clear()

    def _key(self, index: int) -> str:
        number, row = self._locate(index)
        _, lines = self._index_lines(self._shards[number])
        return _components(lines[row])["jpg"][2].split(".")[0]

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.shard_samples[number]

    def _spans(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard of each sample (n) and where it lies in that (n,4, as in `_table`)."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        spans = np.empty((len(indices), 4), np.int64)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            first = self._ends[number] - self.shard_samples[number]
            spans[here] = self._table(number)[indices[here] - first]
        return numbers, spans

    def _read_span(self, index: int, number: int, span: list[int]) -> tuple[memoryview, int]:
        jpeg_at, jpeg_bytes, label_at, label_bytes = span
        start = min(jpeg_at, label_at)
        length = max(jpeg_at + jpeg_bytes, label_at + label_bytes) - start
        try:
            tar = self._open(number)  # held until the read is done: letting go of it may close the file
            content = os.pread(tar.descriptor, length, start)
        except OSError as error:
            raise SampleError(f"{self.describe(index)} cannot be read: {error}", index) from error
        if len(content) < length:
            missing = length - len(content)
            raise SampleError(f"{self.describe(index)} is cut off: the tar ends {missing} bytes early", index)
        label = content[label_at - start : label_at - start + label_bytes]
        if not label.isdigit() or int(label) >= self._classes:
            raise SampleError(f"{self.describe(index)} has label {label!r}; valid: 0 to {self._classes - 1}", index)
        return memoryview(content)[jpeg_at - start : jpeg_at - start + jpeg_bytes], int(label)

    def _size(self, index: int, jpeg: memoryview) -> tuple[int, int]:
        try:
            height, width = jpeg_size(jpeg)
        except ValueError as error:
            raise SampleError(f"{self.describe(index)} does not decode: {error}", index) from error
        if min(height, width) != self._short_side:
            raise SampleError(
                f"{self.describe(index)} has {width} x {height} pixels where the short side is {self._short_side}: "
                "build the shards again",
                index,
            )
        return height, width

    def _table(self, number: int) -> np.ndarray:
        """Offset and size of the JPEG, offset and size of the label, for each sample of a shard: int64 n,4."""
        table = self._tables[number]
        if table is None:
            shard = self._shards[number]
            count, lines = self._index_lines(shard)
            if not count == len(lines) == shard.samples:
                raise self._count_error(shard, len(lines))
            try:
                rows = [(*parts["jpg"][:2], *parts["cls"][:2]) for parts in map(_components, lines)]
            except (KeyError, ValueError) as error:
                raise InputError(f"{self._folder / shard.index} is not an index of jpg and cls: {error!r}") from error
            table = self._tables[number] = np.array(rows, np.int64)
        return table

    def _check_header(self, shard: Shard) -> None:
        with (self._folder / shard.index).open(encoding="utf-8") as file:
            count = self._parse_header(shard, file.readline())
        if count != shard.samples:
            raise self._count_error(shard, count)

    def _index_lines(self, shard: Shard) -> tuple[int, list[str]]:
        header, *lines = (self._folder / shard.index).read_text(encoding="utf-8").splitlines() or [""]
        return self._parse_header(shard, header), lines

    def _parse_header(self, shard: Shard, header: str) -> int:
        version, _, count = header.partition(" ")
        if version != INDEX_VERSION or not count.strip().isdigit():
            raise InputError(
                f"{self._folder / shard.index} begins with {header.strip()!r}, not with {INDEX_VERSION} and a count: "
                "build the shards again"
            )
        return int(count)

    def _count_error(self, shard: Shard, count: int) -> InputError:
        return InputError(
            f"{self._folder / shard.index} lists {count} samples where the manifest says {shard.samples}: "
            "build the shards again"
        )


class _OpenTar:
    """A file handle that closes when the last thread that uses it lets go."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _components(line: str) -> dict[str, tuple[int, int, str]]:
    """Split `ext offset size name ext offset size name ...` into ext -> (offset, size, name)."""
    words = line.split(" ")
    return {words[i]: (int(words[i + 1]), int(words[i + 2]), words[i + 3]) for i in range(0, len(words) - 3, 4)}
