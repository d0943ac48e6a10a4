"""What a build finds in a complete output folder: its own data set, whole or damaged, or another one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from errors import InputError
from preprocess.manifest import MANIFEST_NAME, Manifest, Shard, parse_manifest
from preprocess.plan import Plan
from preprocess.shards import indexed_keys
from preprocess.sources import printable
from preprocess.state.output_folder import check_vacant
from preprocess.verify import ShardCheck, check_mean_image, check_shards, shard_faults


@dataclass(frozen=True)
class Existing:
    """What there is of a planned data set before a build; by default, nothing that is complete."""

    manifest: Manifest | None = None
    """Of a complete folder that is as planned."""
    shards: Mapping[str, Shard] = field(default_factory=dict)
    """The shards of this manifest, by stem."""
    broken: frozenset[str] = frozenset()
    """The stems of those that are not what the manifest says."""
    has_statistics: bool = False
    """Whether the mean image is there, and so all statistics."""

    @property
    def complete(self) -> Manifest:
        """Return the manifest of a folder that has one."""
        assert self.manifest is not None
        return self.manifest

    @property
    def is_whole(self) -> bool:
        """Return whether there is nothing to build."""
        return self.has_statistics and not self.broken


def look_at_output(plan: Plan) -> Existing:
    """Compare the output folder with the plan; if it is complete, every file with its manifest.

    Names, numbers and options are compared with the plan; what the images show is not.

    Raises:
        InputError: the folder is complete but not as planned, its manifest cannot be read, or it is not vacant.
    """
    options = plan.options
    if not os.path.isfile(options.output / MANIFEST_NAME):  # noqa: PTH113 - Path's raises where the system says no
        check_vacant(options.output)
        return Existing()
    manifest = parse_manifest(options.output)
    difference = _difference(manifest, plan)
    if difference:
        raise InputError(
            f"output folder {options.output} is a complete data set with {difference}: "
            "choose another --output, or remove it"
        )
    faults = check_shards(manifest, options)
    return Existing(
        manifest,
        shards={Path(shard.tar).stem: shard for shard in manifest.shards()},
        broken=frozenset(Path(tar).stem for tar, found in faults.items() if found),
        has_statistics=not check_mean_image(manifest, options.output),
    )


def _difference(manifest: Manifest, plan: Plan) -> str | None:
    """Say in what a complete data set differs from the one planned."""
    options = plan.options
    pairs = (
        ("name", manifest.name, options.data_name),
        ("short side", manifest.short_side, options.short_side),
        ("quality", manifest.jpeg_quality, options.quality),
        ("seed", manifest.seed, options.seed),
        ("--apply-exif", manifest.apply_exif, options.apply_exif),
    )
    for what, there, asked in pairs:
        if there != asked:
            return f"{what} {there}, not {asked}"
    if manifest.classes != plan.catalogue.classes:
        return f"{len(manifest.classes)} other classes"
    rejected = {(entry.split, entry.source) for entry in manifest.rejected}
    expected = {}
    for shard in plan.shards:
        keys = [s.key for s in shard.samples if (shard.split, printable(s.source)) not in rejected]
        if keys:
            expected[f"{shard.stem}.tar"] = keys
    listed = {shard.tar: shard for shard in manifest.shards()}
    if {tar: len(keys) for tar, keys in expected.items()} != {tar: shard.samples for tar, shard in listed.items()}:
        return "another number of images or --shard-samples"
    for tar, keys in expected.items():
        if not _is_indexed(options.output / listed[tar].index, keys) and not shard_faults(
            ShardCheck(options.output, listed[tar], manifest.short_side, len(manifest.classes))
        ):
            return "other images or another --shard-samples"
    return None


def _is_indexed(index: Path, keys: list[str]) -> bool:
    try:
        return indexed_keys(index) == keys
    except (OSError, ValueError):
        return False  # damaged
