"""`manifest.json`, the page that turns a folder of tars into a data set.

The manifest is written last and by rename: a folder without it is not a data set, whatever else lies there.
This module needs the standard library alone, so every other part can read a data set's description cheaply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocess.whole_files import write_whole

MANIFEST_NAME = "manifest.json"
MEAN_IMAGE_NAME = "mean.npy"
SCHEMA = 1


class InputError(ValueError):
    """Something that the user gave and can mend: a command prints it as one line and exits with code 2."""


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
class Rgb:
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
    rgb: Rgb
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
        _check_file(folder / self.rgb.mean_image, None)

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
    page = json.dumps(asdict(manifest), indent=1, ensure_ascii=False)
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
        InputError: no such folder, no manifest, not JSON, another schema, or a missing field.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"data folder {folder} does not exist; make one with python -m preprocess.build_shards")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST_NAME}, so it is not a complete folder of shards")
    return _parse(path)


def manifest_digest(folder: Path | str) -> str:
    """Return the SHA-256 of `manifest.json` in hex: it names the data set, tars included."""
    return hashlib.sha256((Path(folder) / MANIFEST_NAME).read_bytes()).hexdigest()


def _parse(path: Path) -> Manifest:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(page, dict) or page.get("schema") != SCHEMA:
        found = page.get("schema") if isinstance(page, dict) else page
        raise InputError(f"{path} has schema {found!r}; this version reads schema {SCHEMA}")
    try:
        return _from_json(page)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a valid manifest: {error!r}") from error


def rgb_from_json(page: dict[str, Any]) -> Rgb:
    """Return the colour statistics that `dataclasses.asdict` and JSON turned into `page`."""
    matrices = {name: tuple(map(tuple, page[name])) for name in ("covariance", "eigenvectors")}
    vectors = {name: tuple(page[name]) for name in ("mean", "eigenvalues")}
    return Rgb(**{**page, **matrices, **vectors})


def _from_json(page: dict[str, Any]) -> Manifest:
    return Manifest(
        **{
            **page,
            "classes": tuple(ClassEntry(**entry) for entry in page["classes"]),
            "splits": {
                name: Split(split["samples"], tuple(Shard(**shard) for shard in split["shards"]))
                for name, split in page["splits"].items()
            },
            "rgb": rgb_from_json(page["rgb"]),
            "rejected": tuple(Rejection(**entry) for entry in page["rejected"]),
        }
    )
