"""`manifest.json`, the page that turns a folder of tars into a data set.

The manifest is written last and by rename: a folder without it is not a data set, whatever else lies there.
This module needs the standard library alone, so every other part can read a data set's description cheaply.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from atomic_files import write_whole
from errors import InputError

MANIFEST_NAME = "manifest.json"
MEAN_IMAGE_NAME = "mean.npy"
SCHEMA = 1


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
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order."""

    samples: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class ColorStats:
    """Colour statistics of all pixels of the train split after resizing, before encoding, in 0-255 units.

    Column j of `eigenvectors` (3x3, row-major) belongs to `eigenvalues[j]`; eigenvalues descend.
    `mean_image` names a float32 file of short_side x short_side x 3 (HWC).
    """

    pixels: int
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, ...]
    eigenvectors: tuple[tuple[float, ...], ...]
    mean_image: str
    mean_image_sha256: str | None = None
    """Of that file, in hex; None in a manifest that an earlier version wrote."""


@dataclass(frozen=True)
class Rejection:
    """A source image that did not become a sample, and why."""

    split: str
    source: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The description of a folder of shards (design contract, schema 1)."""

    schema: int
    name: str
    short_side: int
    jpeg_quality: int
    chroma: str
    resample: str
    seed: int
    classes: tuple[ClassEntry, ...]
    splits: Mapping[str, Split]
    color_stats: ColorStats
    rejected: tuple[Rejection, ...]
    apply_exif: bool = False
    """Whether images are turned as their EXIF orientation says."""

    def split(self, name: str) -> Split:
        """Return the split `name`; raise `InputError` naming the ones that there are."""
        if name not in self.splits:
            raise InputError(f"split {name!r} is not in data set {self.name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def check_files(self, folder: Path) -> None:
        """Raise `InputError` unless every file that the manifest names is there, tars by exact size."""
        for shard in self.shards():
            _check_file(folder / shard.tar, shard.bytes)
            _check_file(folder / shard.index, None)
        _check_file(folder / self.color_stats.mean_image, None)

    def shards(self) -> Iterator[Shard]:
        """Yield the shards of all splits, in order."""
        for split in self.splits.values():
            yield from split.shards


def _check_file(path: Path, expected_bytes: int | None) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing, although {MANIFEST_NAME} lists it: build the shards again")
    if expected_bytes is not None and path.stat().st_size != expected_bytes:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes where {MANIFEST_NAME} says {expected_bytes}: "
            "build the shards again"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit `folder` as a data set: write `manifest.json` aside, flush it to disk, rename it."""
    fields = {"rgb" if name == "color_stats" else name: value for name, value in asdict(manifest).items()}
    page = json.dumps(fields, indent=1, ensure_ascii=False)
    write_whole(folder / MANIFEST_NAME, f"{page}\n".encode())


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check the description of a data set.

    Raises:
        InputError: as `parse_manifest` says, or a file is missing or of another size than the manifest says.
    """
    manifest = parse_manifest(folder)
    manifest.check_files(Path(folder))
    return manifest


def parse_manifest(folder: Path | str) -> Manifest:
    """Read the description of a data set without a look at the files that it names.

    Raises:
        InputError: no such folder, no manifest, not JSON, another schema, or a field that is missing, unknown or of
            another type.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path's raises where the system says no
        raise InputError(f"data folder {folder} does not exist; make one with python -m preprocess.build_shards")
    path = folder / MANIFEST_NAME
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"{folder} has no {MANIFEST_NAME}, so it is not a complete folder of shards")
    return _parse(path)


def manifest_digest(folder: Path | str) -> str:
    """Return the SHA-256 of `manifest.json` in hex: it names the data set, tars included."""
    return hashlib.sha256((Path(folder) / MANIFEST_NAME).read_bytes()).hexdigest()


def _parse(path: Path) -> Manifest:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(page, dict) or page.get("schema") != SCHEMA:
        found = page.get("schema") if isinstance(page, dict) else page
        raise InputError(f"{path} has schema {found!r}; this version reads schema {SCHEMA}")
    try:
        return _from_json(page)
    except InputError as error:
        raise InputError(f"{path} is not a valid manifest: {error}") from error


def color_stats_from_json(page: Any) -> ColorStats:
    """Return the colour statistics that `dataclasses.asdict` and JSON turned into `page`; raise `InputError` if none"""
    color_stats: ColorStats = _typed(page, ColorStats, "rgb")
    _check_channels(color_stats)
    return color_stats


def _check_channels(color_stats: ColorStats) -> None:
    triples = (
        color_stats.mean,
        color_stats.eigenvalues,
        color_stats.covariance,
        color_stats.eigenvectors,
        *color_stats.covariance,
        *color_stats.eigenvectors,
    )
    if any(len(triple) != 3 for triple in triples):
        raise InputError("rgb is not of three channels")


def _from_json(page: dict[str, Any]) -> Manifest:
    page = {"color_stats" if name == "rgb" else name: value for name, value in page.items()}
    manifest: Manifest = _typed(page, Manifest, "")
    _check_channels(manifest.color_stats)
    files = [name for shard in manifest.shards() for name in (shard.tar, shard.index)]
    for name in (*files, manifest.color_stats.mean_image):
        if Path(name).name != name or "\0" in name:
            raise InputError(f"{name!r} is not the name of a file in the folder")
    if manifest.short_side < 1 or not manifest.classes:
        raise InputError(f"short_side is {manifest.short_side} and there are {len(manifest.classes)} classes")
    return manifest


def _typed(value: Any, kind: Any, place: str) -> Any:
    """Turn what JSON gave into `kind`, a type as the dataclasses above have them; `InputError` where it is another."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints = get_type_hints(kind)
        missing = [each.name for each in fields(kind) if each.default is MISSING and each.name not in value]
        for name in (*missing, *(name for name in value if name not in hints)):
            raise InputError(f"{place}.{name} is {'missing' if name in missing else 'unknown'}".lstrip("."))
        return kind(**{name: _typed(each, hints[name], f"{place}.{name}".lstrip(".")) for name, each in value.items()})
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(each, inner[0], f"{place}[{number}]") for number, each in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {name: _typed(each, inner[1], f"{place}.{name}") for name, each in value.items()}
    if origin is UnionType and value is None:
        return None
    plain = inner[0] if origin is UnionType else kind
    if plain is float and type(value) is int:
        return float(value)
    if type(value) is plain and (plain is not int or value >= 0 or place == "seed"):
        return value
    raise InputError(f"{place} is {str(value)[:40]!r}, not {getattr(plain, '__name__', plain)}")
