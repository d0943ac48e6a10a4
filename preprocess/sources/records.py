"""Containers whose images cannot be read in place (Parquet, pickles), unpacked once into files that can.

`<container>.records` holds the images' bytes back to back, `<container>.npy` the offsets of their beginnings and of
the end, `<container>.json` the fingerprint of the container. Shards are shuffled: without unpacking, every container
would be decompressed for nearly every shard.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from atomic_files import atomic_write, partial_path
from errors import InputError
from preprocess.run.pool import Tally
from preprocess.sources.catalogue import RowRef
from preprocess.state.fingerprint import FileFingerprint, file_fingerprint

Rows = Callable[[Path], Iterator[bytes]]
"""Function that yields the image file of each row of a container; on module level, so that it can be pickled."""


@dataclass(frozen=True)
class Container:
    """A file of the input folder that has to be unpacked."""

    file: str
    """Relative to the input folder; no two containers have the same name."""
    rows: int
    read: Rows


@dataclass(frozen=True)
class UnpackTask:
    """One container to be unpacked into the folder `scratch`."""

    root: Path
    container: Container
    scratch: Path


def unpack(task: UnpackTask, tally: Tally) -> None:
    """Write the records of one container atomically, unless those of the same container are there.

    Raises:
        InputError: the container cannot be read, or its number of rows has changed.
        OSError: the records cannot be written, e.g. a full disk.
    """
    container = task.container
    records, offsets, stamped = _paths(task.scratch, container.file)
    now = file_fingerprint(task.root / container.file)
    if records.is_file() and offsets.is_file() and unpacked_fingerprint(task.scratch, container.file) == now:
        tally.count(container.rows)
        return
    task.scratch.mkdir(parents=True, exist_ok=True)
    stamped.unlink(missing_ok=True)
    begins = [0]
    with partial_path(records).open("wb") as file:
        for data in container.read(task.root / container.file):
            file.write(data)
            begins.append(begins[-1] + len(data))
            tally.count(size=len(data))
        file.flush()
        os.fsync(file.fileno())
    if len(begins) != container.rows + 1:
        raise InputError(f"{task.root / container.file} has {len(begins) - 1} rows, and had {container.rows} before")
    partial_path(records).replace(records)
    array = io.BytesIO()
    np.save(array, np.array(begins, np.int64))
    atomic_write(offsets, array.getvalue())
    atomic_write(stamped, json.dumps(now).encode())


def unpacked_fingerprint(scratch: Path, container: str) -> FileFingerprint:
    """Return the fingerprint of the container whose records lie in `scratch`; None if there are none."""
    try:
        size, time = json.loads(_paths(scratch, container)[2].read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return size, time


def record_span(scratch: Path, record: RowRef) -> tuple[Path, int, int]:
    """Return file, offset and size of an image that was unpacked into `scratch`.

    Raises:
        OSError: its container was not unpacked.
    """
    records, offsets, _ = _paths(scratch, record.file)
    begins = _load_offsets(offsets)
    begin, end = begins[record.row : record.row + 2].tolist()
    return records, begin, end - begin


def _paths(scratch: Path, container: str) -> tuple[Path, Path, Path]:
    name = PurePosixPath(container).name
    return scratch / f"{name}.records", scratch / f"{name}.npy", scratch / f"{name}.json"


@lru_cache(maxsize=1024)  # ImageNet has 308 Parquet files, of 35 KB of offsets each
def _load_offsets(path: Path) -> np.ndarray:
    return np.load(path)
