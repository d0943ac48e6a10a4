"""ImageNet-1k as on Hugging Face: Parquet files with the columns `image` {bytes, path} and `label`.

    IN/train-*.parquet  IN/validation-*.parquet or IN/val-*.parquet     (or all of them in IN/data)

Files `test-*.parquet` are ignored: their labels are -1. Class names are those of the schema; class ids are the wnids
in the images' paths where every image of a class has the same one, else the names. Images are named after their
paths where each has one of its own, else after file and row. The wnid that is put behind a name there,
n01440764_10026_n01440764.JPEG, is taken off again: name and place in the order are those of the official archives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from errors import InputError
from preprocess.sources.catalogue import Found, RowRef
from preprocess.sources.labels import check_labels
from preprocess.sources.source import Container, Listing

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_PATTERNS = {"train": ("train-*.parquet",), "val": ("validation-*.parquet", "val-*.parquet")}
_PART = re.compile(r"(.*)-(\d+)-of-(\d+)\b.*\.parquet")
_WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")
_BATCH_ROWS = 16
_BUFFER = 1 << 20  # bytes read at a time, so that a row group need not fit into memory


@dataclass(frozen=True)
class _Rows:
    """Labels and paths of one file."""

    split: str
    file: str
    labels: list[int]
    paths: list[str]


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    return any(files for files in _files(root).values())


def read(root: Path) -> Listing:
    """List the images of the Parquet files.

    Raises:
        InputError: files are missing or cannot be read, columns are others, or a label has no name.
    """
    files = _files(root)
    for split, patterns in _PATTERNS.items():
        if not files[split]:
            raise InputError(f"input folder {root} has no {' or '.join(patterns)}, nor has its folder data")
        _check_parts(files[split])
    names = _read_names(files["train"][0])
    rows = [_read_rows(root, split, path, len(names)) for split, paths in files.items() for path in paths]
    ids = _wnids(rows, len(names)) or names
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(
            f"two classes in {files['train'][0]} have the name {twice!r}, and the paths of the images no wnids"
        )
    containers = tuple(Container(part.file, len(part.labels), read_rows) for part in rows)
    found: dict[str, list[Found]] = {split: [] for split in files}
    for image in _found(rows, ids):
        found[image[0]].append(image)
    return Listing(dict(zip(ids, names, strict=True)), found, containers)


def read_rows(path: Path) -> Iterator[bytes]:
    """Yield the image file of each row; a row without one is an empty file.

    Raises:
        InputError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        with _opened(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=["image.bytes"]):
                for row in batch.column("image").field("bytes"):
                    yield row.as_py() or b""
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _opened(path: Path) -> pq.ParquetFile:
    import pyarrow as pa  # other layouts do not need it
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is truncated or not Parquet: {error}") from error


def _files(root: Path) -> dict[str, list[Path]]:
    for folder in (root, root / "data"):
        files = {
            split: sorted(path for each in each_split for path in folder.glob(each))
            for split, each_split in _PATTERNS.items()
        }
        if any(files.values()):
            return files
    return files


def _check_parts(paths: Sequence[Path]) -> None:
    """Raise `InputError` if a file of a numbered series `-00000-of-00005` is missing."""
    there: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        if match := _PART.fullmatch(path.name):
            there.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in there.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            raise InputError(
                f"{paths[0].parent} has {len(numbers)} of {count} files {stem}-*: number {missing[0]} is missing"
            )


def _read_names(path: Path) -> list[str]:
    """Return the class names, in the order of the file's labels."""
    with _opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} has no class names in its schema (huggingface: info.features.label.names)") from None
    return [str(name) for name in names]


def _read_rows(root: Path, split: str, path: Path, classes: int) -> _Rows:
    import pyarrow as pa

    with _opened(path) as file:
        leaves = {file.schema.column(number).path for number in range(len(file.schema))}
        for leaf in ("image.bytes", "image.path", "label"):
            if leaf not in leaves:
                raise InputError(f"{path} has no column {leaf}; it has {', '.join(sorted(leaves))}")
        try:
            table = file.read(columns=["label", "image.path"])
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    labels = table.column("label").to_pylist()
    check_labels(path, labels, classes)
    images = table.column("image").combine_chunks()
    paths = [PurePosixPath(text or "").name for text in images.field("path").to_pylist()]
    return _Rows(split, path.relative_to(root).as_posix(), labels, paths)


def _wnids(rows: Sequence[_Rows], classes: int) -> list[str] | None:
    """Return the wnid of each label if it is the same for all its images and unique, else None."""
    there: list[set[str]] = [set() for _ in range(classes)]
    for _, _, label, path in _images(rows):
        found = set(_WNID.findall(path))
        there[label] |= found if len(found) == 1 else {""}
    wnids = {wnid for each in there for wnid in each}
    if "" in wnids or len(wnids) < classes or any(len(each) != 1 for each in there):
        return None
    return [wnid for each in there for wnid in each]


def _found(rows: Sequence[_Rows], ids: Sequence[str]) -> Iterator[Found]:
    canonical_names = [
        f"{part.split}/{ids[label]}/{_named(path, ids[label])}" for part, _, label, path in _images(rows)
    ]
    if len(set(canonical_names)) < len(canonical_names) or not all(path for *_, path in _images(rows)):
        stems = {part.file: PurePosixPath(part.file).stem for part in rows}
        canonical_names = [
            f"{part.split}/{ids[label]}/{stems[part.file]}_{row:06d}" for part, row, label, _ in _images(rows)
        ]
    for (part, row, label, _), canonical_name in zip(_images(rows), canonical_names, strict=True):
        yield part.split, ids[label], canonical_name, RowRef(part.file, row)


def _images(rows: Sequence[_Rows]) -> Iterator[tuple[_Rows, int, int, str]]:
    """Yield the file, row, label and path of each image."""
    for part in rows:
        for row, (label, path) in enumerate(zip(part.labels, part.paths, strict=True)):
            yield part, row, label, path


def _named(path: str, class_id: str) -> str:
    """Return the name in a path, without the class id that is put behind it."""
    stem, dot, ending = path.rpartition(".")
    return f"{stem.removesuffix(f'_{class_id}')}{dot}{ending}"
