"""What makes a build the same build: everything that decides the bytes, in a form that can be written down."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from typing import Any

from preprocess.images.transform import codec_versions
from preprocess.plan import Plan

BYTES_VERSION = 2
"""Of our own code: one more with every change that gives other bytes for the same input and options."""

_INDIFFERENT = ("input", "output", "name", "layout", "workers", "ray", "max_rejected")
"""Options that do not change the bytes, or that show in what else is compared. All others, also new ones, do."""
_DIGESTS = {"classes": "other classes", "images": "other images"}


def identity(plan: Plan) -> dict[str, Any]:
    """Describe a build: two with the same description may share their shards.

    Images are known by their names, labels and places in shards. Whether their files are the same is compared shard
    by shard, in `changed_source`.
    """
    options = {
        name.replace("_", " "): value for name, value in asdict(plan.options).items() if name not in _INDIFFERENT
    }
    images = hashlib.sha256()
    for shard in plan.shards:
        images.update(f"{shard.stem}\n".encode())
        for sample in shard.samples:
            images.update(os.fsencode(f"{sample.key} {sample.label} {sample.source}\0"))
    return {
        "name": plan.options.data_name,
        **options,
        "build version": BYTES_VERSION,
        **codec_versions(),
        "classes": hashlib.sha256(repr(plan.catalogue.classes).encode()).hexdigest(),
        "images": images.hexdigest(),
    }


def difference(there: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """Say in what the build that is there differs from the one asked for; None if they are the same."""
    for what in dict.fromkeys((*asked, *there)):
        if there.get(what) != asked.get(what):
            return _DIGESTS.get(what) or f"{what} {_text(there.get(what))}, not {_text(asked.get(what))}"
    return None


def _text(value: object) -> str:
    return "none" if value is None else str(value)
