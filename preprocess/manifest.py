"""The description of a data set: `manifest.json`, which turns a folder of tars into one, and the index of each tar.

The manifest is written last and by rename: a folder without it is not a data set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import pydantic

from atomic_files import atomic_write
from errors import InputError
from object_store import StoreFolder, is_uri, join, read_file
from typed_json import parse_versioned_json, read_versioned_json, to_json_values

MANIFEST_NAME = "manifest.json"
MEAN_IMAGE_NAME = "mean.npy"
SCHEMA = 1
INDEX_VERSION = "v1.2"
"""Of the format that DALI's `wds2idx` writes."""

_Count = Annotated[int, pydantic.Field(ge=0)]
_WNID_LINE = re.compile(r"(n\d{8})\s*[\s:,]\s*(.*)")
_LEFT_OUT_IF_EMPTY = ("skipped", "value_range")
"""Fields of the manifest that came later: without them, its bytes are those of earlier versions."""


@dataclass(frozen=True)
class ClassEntry:
    """One class; its position in `Manifest.classes` is the label."""

    id: str
    name: str


@dataclass(frozen=True)
class Shard:
    """One tar of samples with its DALI index; file names are relative to the data set's folder."""

    tar: str
    index: str
    samples: _Count
    bytes: _Count
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order."""

    samples: _Count
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class ColorStats:
    """Colour statistics of all pixels of one split after resizing, before encoding, in 0-255 units.

    Column j of `eigenvectors` (3x3, row-major) belongs to `eigenvalues[j]`; eigenvalues descend.
    `mean_image` names a float32 file of short_side x short_side x 3 (HWC).
    """

    pixels: _Count
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, ...]
    eigenvectors: tuple[tuple[float, ...], ...]
    mean_image: str
    mean_image_sha256: str | None = None
    """SHA-256 of that file in hex; None in a manifest of an earlier version."""
    split: str = "train"
    """The split whose pixels these are; another than train only where the data set has no train split."""

    def __post_init__(self) -> None:
        """Raise `InputError` unless there are three channels."""
        matrices = (self.covariance, self.eigenvectors)
        triples = (self.mean, self.eigenvalues, *matrices, *(row for matrix in matrices for row in matrix))
        if any(len(triple) != 3 for triple in triples):
            raise InputError("rgb is not of three channels")


@dataclass(frozen=True)
class Rejection:
    """A source image that did not become a sample, with the reason."""

    split: str
    source: str
    reason: str

    @property
    def kind(self) -> str:
        """Return the reason without its numbers and what is in brackets, to count by."""
        return re.sub(r"\d[\d.,x]*", "N", re.sub(r" \(.*\)", "", self.reason))

    def describe(self) -> str:
        """Return the image and the reason in one line."""
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True)
class Manifest:
    """The description of a folder of shards; a field's name in JSON is its own or its alias."""

    schema: int
    name: str
    short_side: Annotated[int, pydantic.Field(ge=1)]
    jpeg_quality: _Count
    chroma: str
    resample: str
    seed: int
    classes: Annotated[tuple[ClassEntry, ...], pydantic.Field(min_length=1)]
    splits: Mapping[str, Split]
    color_stats: Annotated[ColorStats, pydantic.Field(alias="rgb")]
    rejected: tuple[Rejection, ...]
    apply_exif: bool = False
    """True if images were turned as their EXIF orientation says."""
    skipped: Mapping[str, _Count] = field(default_factory=dict)
    """Number of files of the input that are no images, by ending."""
    value_range: tuple[float, float] | None = None
    """The values that became black and white, in images of one channel of more than 8 bits; None: see `value_range`."""

    def __post_init__(self) -> None:
        """Raise `InputError` for the name of a file that is not in the folder itself."""
        files = [name for shard in self.shards() for name in (shard.tar, shard.index)]
        for name in (*files, self.color_stats.mean_image):
            if Path(name).name != name or "\0" in name:
                raise InputError(f"{name!r} is not the name of a file in the folder")

    def split(self, name: str) -> Split:
        """Return the split `name`; raise `InputError` naming the available ones."""
        if name not in self.splits:
            raise InputError(
                f"split is {name!r}: data set {self.name!r} has no such split; use {', '.join(self.splits)}"
            )
        return self.splits[name]

    def samples(self, split: str) -> int:
        """Return the number of samples of a split; 0 if there is no such split."""
        return self.splits[split].samples if split in self.splits else 0

    def check_files(self, folder: Path | str) -> None:
        """Raise `InputError` unless every file in the manifest exists at a path or URI, tars with their exact size."""
        size_of = _sizes_in(folder)
        for shard in self.shards():
            _check_size(join(str(folder), shard.tar), size_of(shard.tar), shard.bytes)
            _check_size(join(str(folder), shard.index), size_of(shard.index), None)
        _check_size(join(str(folder), self.color_stats.mean_image), size_of(self.color_stats.mean_image), None)

    def shards(self) -> Iterator[Shard]:
        """Yield the shards of all splits, in order."""
        for split in self.splits.values():
            yield from split.shards


def parse_class_line(line: str) -> tuple[str, str]:
    """Return the class id and the name, perhaps empty, of a line in a list of classes.

    A tab separates them, or else the first space, or a colon or comma after a wnid: `n01440764: tench, Tinca tinca`.
    """
    wnid = _WNID_LINE.fullmatch(line)
    class_id, name = wnid.groups() if wnid else line.partition("\t" if "\t" in line else " ")[::2]
    name = name.strip().removeprefix(":").removeprefix(",").strip()
    return class_id.strip().rstrip(":,") if name else class_id.strip(), name


def _sizes_in(folder: Path | str) -> Callable[[str], int | None]:
    """Return a function that gives the size in bytes of a file in a folder by its name; None where there is none."""
    if is_uri(folder):
        return StoreFolder(str(folder)).sizes().get  # one request for a thousand files
    return lambda name: path.stat().st_size if (path := Path(folder, name)).is_file() else None


def _check_size(file: str, size: int | None, expected: int | None) -> None:
    if size is None:
        raise InputError(f"{file} is missing: {MANIFEST_NAME} lists it; build the shards again")
    if expected is not None and size != expected:
        raise InputError(f"{file} has {size} bytes: {MANIFEST_NAME} says {expected}; build the shards again")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit `folder` as a data set: write `manifest.json` aside, flush it to disk, rename it."""
    values = to_json_values(manifest)
    for name in _LEFT_OUT_IF_EMPTY:
        if not values[name]:
            del values[name]
    if values["rgb"]["split"] == "train":
        del values["rgb"]["split"]
    page = json.dumps(values, indent=1, ensure_ascii=False)
    atomic_write(folder / MANIFEST_NAME, f"{page}\n".encode())


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check the description of the data set in a folder or object store.

    Raises:
        InputError: as `parse_manifest`, or a file is missing or has a different size.
    """
    manifest = parse_manifest(folder)
    manifest.check_files(folder)
    return manifest


def parse_manifest(folder: Path | str) -> Manifest:
    """Read the description of a data set; ignore the files that it names.

    Raises:
        InputError: no such folder, no manifest, not JSON, another schema, or a field that is missing, unknown or of
            another type; or the object store cannot be read.
    """
    if is_uri(folder):
        page = StoreFolder(str(folder)).read(MANIFEST_NAME)
        if page is None:
            raise _incomplete(folder)
        return parse_versioned_json(Manifest, page, join(str(folder), MANIFEST_NAME), SCHEMA)
    folder = Path(folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path's raises where the system refuses access
        raise InputError(f"data folder {folder} does not exist; make one with python -m preprocess.build_shards")
    path = folder / MANIFEST_NAME
    if not os.path.isfile(path):  # noqa: PTH113
        raise _incomplete(folder)
    return read_versioned_json(Manifest, path, SCHEMA)


def _incomplete(folder: Path | str) -> InputError:
    problem = f"{folder} has no {MANIFEST_NAME}: it is not a complete folder of shards"
    return InputError(f"{problem}; make one with build_shards")


def manifest_digest(folder: Path | str) -> str:
    """Return the SHA-256 of `manifest.json` in hex: it names the data set, tars included."""
    return hashlib.sha256(read_file(join(str(folder), MANIFEST_NAME))).hexdigest()


class IndexEntry(NamedTuple):
    """Location of the two files of a sample in its tar: offsets and sizes in bytes."""

    key: str
    jpeg_offset: int
    jpeg_bytes: int
    label_offset: int
    label_bytes: int


def index_text(entries: Iterable[IndexEntry]) -> str:
    """Return the text of the index of a tar that holds these samples."""
    lines = [f"jpg {at} {size} {key}.jpg cls {label} {digits} {key}.cls" for key, at, size, label, digits in entries]
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines, ""])


def indexed_samples(path: Path) -> int:
    """Return the number of samples in the first line of an index; raise `InputError` if it has none."""
    with path.open(encoding="ascii", errors="replace") as file:
        header = file.readline().strip()
    version, _, count = header.partition(" ")
    if version != INDEX_VERSION or not count.isdecimal():
        raise InputError(f"{path} begins with {header!r}, not with {INDEX_VERSION} and a count: build the shards again")
    return int(count)


def read_index(path: Path) -> list[IndexEntry]:
    """Return the samples of an index in the order of the tar.

    Raises:
        InputError: it is not the index of a tar whose samples are a JPEG and a label.
    """
    indexed_samples(path)
    entries = []
    for line in path.read_text(encoding="ascii", errors="replace").splitlines()[1:]:
        try:
            jpg, jpeg_offset, jpeg_bytes, name, cls, label_offset, label_bytes, _ = line.split(" ")
            numbers = (int(jpeg_offset), int(jpeg_bytes), int(label_offset), int(label_bytes))
        except ValueError:
            jpg = cls = ""
        if (jpg, cls) != ("jpg", "cls"):
            raise InputError(f"{path} is not an index of jpg and cls: it has the line {line!r}; build the shards again")
        entries.append(IndexEntry(name.partition(".")[0], *numbers))
    return entries
