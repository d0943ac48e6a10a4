"""Tables of images as on Hugging Face: Parquet files with a column of images and one of labels.

    IN/train-*.parquet  IN/validation-*.parquet  IN/test-*.parquet     (or all of them in IN/data)
    IN/train/*.parquet  IN/validation/*.parquet  IN/test/*.parquet

Splits have the names that `splits.split_of` knows; a test split without labels (all -1, as ImageNet's) is ignored, and
files of one folder without such names are of no split. An image is {bytes, path}, or only its bytes. Class names are
those of the schema; class ids are the wnids in the images' paths where every image of a class has the same one, else
the names, else the labels. Images are named after their paths where each has one of its own, else after file and row.
The wnid that is put behind a name there, n01440764_10026_n01440764.JPEG, is taken off again: name and place in the
order are those of the official archives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from errors import InputError
from preprocess.sources.catalogue import SPLITS, Found, RowRef
from preprocess.sources.columns import IMAGE_COLUMNS, LABEL_COLUMNS, choose_column, class_ids, find_column, wnids_of
from preprocess.sources.folders import has_train, split_folders
from preprocess.sources.labels import check_labels
from preprocess.sources.source import Container, Listing, SourceOptions
from preprocess.sources.splits import split_of

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_PART = re.compile(r"(.*)-(\d+)-of-(\d+)\b.*\.parquet")
_BATCH_ROWS = 16
_BUFFER = 1 << 20  # bytes read at a time, so that a row group need not fit into memory
_UNLABELLED = (-1, None)


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    nested: bool
    """True if an image is {bytes, path}."""


@dataclass(frozen=True)
class _Rows:
    """Labels and paths of one file."""

    split: str
    file: str
    labels: list[int | str]
    paths: list[str]


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    return bool(_files(root))


def is_in_folders(root: Path) -> bool:
    """Return True if the files lie in folders of splits, which are then no class folders."""
    return any(path.parent not in (root, root / "data") for paths in _files(root).values() for path in paths)


def read(root: Path, options: SourceOptions) -> Listing:
    """List the images of the Parquet files.

    Raises:
        InputError: files are missing or cannot be read, there are no such columns, or a label has no name.
    """
    files = _files(root)
    if not files:
        raise InputError(f"input folder {root} has no train-*.parquet, nor has its folder data")
    is_split = None not in files
    for paths in files.values():
        _check_parts(paths)
    first = next(iter(files.values()))[0]
    names, ignored = _read_names(first, _columns(first, options).label), []
    rows: list[_Rows] = []
    for split, paths in files.items():
        listed = [_read_rows(root, split or "train", path, _columns(path, options)) for path in paths]
        if split == "test" and all(label in _UNLABELLED for part in listed for label in part.labels):
            ignored.append("test, without labels")
        else:
            rows += listed
    for part in rows:
        _check_rows(root / part.file, part.labels, names)
    ids, name_of = _class_ids(rows, names, first)
    column = partial(read_rows, image=_columns(first, options))
    containers = tuple(Container(part.file, len(part.labels), column) for part in rows)
    found: dict[str, list[Found]] = {part.split: [] for part in rows}
    for image in _found(rows, ids):
        found[image[0]].append(image)
    by_id = {class_id: name_of[label] for label, class_id in ids.items()}
    return Listing(by_id, found, containers, tuple(ignored), is_split=is_split)


def read_rows(path: Path, image: _Columns) -> Iterator[bytes]:
    """Yield the image file of each row; a row without one is an empty file.

    Raises:
        InputError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        with _opened(path) as file:
            leaf = f"{image.image}.bytes" if image.nested else image.image
            for batch in file.iter_batches(_BATCH_ROWS, columns=[leaf]):
                column = batch.column(image.image)
                for row in column.field("bytes") if image.nested else column:
                    yield row.as_py() or b""
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _opened(path: Path) -> pq.ParquetFile:
    import pyarrow as pa  # other layouts do not need it
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is truncated or not Parquet: {error}") from error


def _files(root: Path) -> dict[str | None, list[Path]]:
    """Return the files of each split; None is the split of files whose names and folders tell none."""
    for folder in (root, root / "data"):
        files: dict[str | None, list[Path]] = {}
        within = [*split_folders(folder).values()] if folder.is_dir() else []  # class folders are not looked into
        for path in sorted(path for each in (folder, *within) for path in each.glob("*.parquet")):
            name = path.name if path.parent == folder else path.parent.name
            if split := split_of(re.split(r"[-_.]", name)[0]):
                files.setdefault(split, []).append(path)
        if files:
            return {split: files[split] for split in SPLITS if split in files}
        others = sorted(folder.glob("*.parquet"))
        if others and not has_train(root) and _holds_images(others[0]):
            return {None: others}
    return {}


def _holds_images(path: Path) -> bool:
    try:
        with _opened(path) as file:
            return find_column(file.schema_arrow.names, IMAGE_COLUMNS) is not None
    except InputError:
        return False


def _columns(path: Path, options: SourceOptions) -> _Columns:
    import pyarrow as pa

    with _opened(path) as file:
        schema = file.schema_arrow
    image = choose_column(schema.names, "--image-column", options.image_column, IMAGE_COLUMNS, str(path))
    label = choose_column(schema.names, "--label-column", options.label_column, LABEL_COLUMNS, str(path))
    kind, of_labels = schema.field(image).type, schema.field(label).type
    nested = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not nested and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise InputError(f"{path} has {kind} in column {image!r}; use --image-column with one of image files")
    if not any(check(of_labels) for check in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)):
        raise InputError(f"{path} has {of_labels} in column {label!r}; use --label-column with one of numbers or names")
    return _Columns(image, label, nested)


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


def _read_names(path: Path, column: str) -> list[str] | None:
    """Return the class names in the order of the labels in `column`; None if the file has none."""
    with _opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return None if names is None else [str(name) for name in names]


def _read_rows(root: Path, split: str, path: Path, columns: _Columns) -> _Rows:
    import pyarrow as pa

    paths_leaf = f"{columns.image}.path"
    with _opened(path) as file:
        leaves = {file.schema.column(number).path for number in range(len(file.schema))}
        try:
            table = file.read(columns=[columns.label, *({paths_leaf} & leaves)])
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    labels = table.column(columns.label).to_pylist()
    paths = [""] * len(labels)
    if paths_leaf in leaves:
        images = table.column(columns.image).combine_chunks()
        paths = [PurePosixPath(text or "").name for text in images.field("path").to_pylist()]
    return _Rows(split, path.relative_to(root).as_posix(), labels, paths)


def _check_rows(path: Path, labels: Sequence[int | str], names: Sequence[str] | None) -> None:
    if names is not None:
        check_labels(path, labels, len(names))
    for row, label in enumerate(labels):
        if label in _UNLABELLED:
            raise InputError(f"{path}, row {row} has no label; remove it, or use another --label-column")


def _class_ids(
    rows: Sequence[_Rows], names: list[str] | None, first: Path
) -> tuple[dict[int | str, str], dict[int | str, str]]:
    """Return the class id and the name of each label."""
    if names is None:
        ids = class_ids(label for part in rows for label in part.labels)
        return ids, ids
    wnids = wnids_of((label, path) for _, _, label, path in _images(rows)) or {}
    listed = [wnids[label] for label in range(len(names))] if len(wnids) == len(names) else names
    if len(set(listed)) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise InputError(f"two classes in {first} have the name {twice!r}, and the paths of the images no wnids")
    return dict(enumerate(listed)), dict(enumerate(names))


def _found(rows: Sequence[_Rows], ids: Mapping[int | str, str]) -> Iterator[Found]:
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


def _images(rows: Sequence[_Rows]) -> Iterator[tuple[_Rows, int, int | str, str]]:
    """Yield the file, row, label and path of each image."""
    for part in rows:
        for row, (label, path) in enumerate(zip(part.labels, part.paths, strict=True)):
            yield part, row, label, path


def _named(path: str, class_id: str) -> str:
    """Return the name in a path, without the class id that is put behind it."""
    stem, dot, ending = path.rpartition(".")
    return f"{stem.removesuffix(f'_{class_id}')}{dot}{ending}"
