"""Fingerprints of a build and of source files: an unfinished build is continued only where they are the same."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.images.transform import codec_versions

if TYPE_CHECKING:
    from preprocess.plan import Plan

BYTES_VERSION = 3
"""Version of our own code: one more with every change that gives different bytes for the same input and options."""

_OF_SOURCE = ("test_as_val", "splits", "classes", "labels", "label_column")
_INDIFFERENT = ("input", "output", "name", "layout", "workers", "ray", "max_rejected", *_OF_SOURCE)
"""Options that do not change the bytes, or that show in other compared fields. All others, also new ones, do."""
_DIGESTS = {"classes": "other classes", "images": "other images"}

FileFingerprint = tuple[int, int] | None
"""Size in bytes and `mtime_ns` of a file; None for a file that is not there."""


def file_fingerprint(path: Path) -> FileFingerprint:
    """Return size and modification time of a file; symbolic links are followed."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def build_fingerprint(plan: Plan) -> dict[str, Any]:
    """Describe everything that decides a build's bytes: builds with the same description may share their shards.

    Images count with their names, labels and positions in shards; `changed_shards` compares their files.
    """
    options = {
        name.replace("_", " "): value for name, value in asdict(plan.options).items() if name not in _INDIFFERENT
    }
    images = hashlib.sha256()
    for shard in plan.shards:
        images.update(f"{shard.stem}\n".encode())
        for key, image in shard.samples():
            images.update(os.fsencode(f"{key} {image.label} {image.canonical_name}\0"))
    fingerprint = {
        "name": plan.options.data_name,
        **options,
        "build version": BYTES_VERSION,
        **codec_versions(),
        "classes": hashlib.sha256(repr(plan.catalogue.classes).encode()).hexdigest(),
        "images": images.hexdigest(),
    }
    comparable: dict[str, Any] = json.loads(json.dumps(fingerprint))  # lists for tuples, as in the file
    return comparable


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Describe the first difference between two build fingerprints; None if they are the same."""
    for field in dict.fromkeys((*wanted, *found)):
        pair = found.get(field), wanted.get(field)
        if pair[0] != pair[1]:
            old, new = ("none" if value is None else value for value in pair)
            return _DIGESTS.get(field) or f"{field} {old}, not {new}"
    return None
