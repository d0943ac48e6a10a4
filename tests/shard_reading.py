"""Shards read with nothing but the standard library: what any tool would find in them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def read_samples(folder: Path, split: str) -> Iterator[tuple[str, bytes, str]]:
    """Yield key, JPEG bytes and label text of each sample of a split, in order."""
    for shard in read_json(folder)["splits"][split]["shards"]:
        with tarfile.open(folder / shard["tar"]) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, ending = image.name.split(".")
                assert (ending, label.name) == ("jpg", f"{key}.cls")
                yield key, tar.extractfile(image).read(), tar.extractfile(label).read().decode("ascii")


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def changed_files(folder: Path, before: dict[str, tuple[int, int]]) -> set[str]:
    """Return the files that were written, or rewritten, since `file_identities(folder)` gave `before`."""
    return {name for name, identity in file_identities(folder).items() if before.get(name) != identity}


def file_identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each file in a folder: they change whenever it is rewritten."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}
