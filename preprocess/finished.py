"""What a complete output folder is worth to a build: the same, another one, or damaged."""

from __future__ import annotations

from preprocess.manifest import MANIFEST_NAME, InputError, Manifest, parse_manifest
from preprocess.output_folder import LOCK_NAME, check_vacant
from preprocess.plan import Plan
from preprocess.shards import indexed_keys
from preprocess.sources import printable


def finished_manifest(plan: Plan) -> Manifest | None:
    """Return the manifest of an output folder that is complete and as planned; None when there is work to do.

    A folder as planned from which a file is gone or cut short is work to do. Names, numbers and options are compared;
    what the images show is not, neither here nor in the source.

    Raises:
        InputError: the folder is complete but not as planned, its manifest cannot be read, or it is not vacant.
    """
    output = plan.options.output
    if not (output / MANIFEST_NAME).is_file():
        check_vacant(output)
        return None
    manifest = parse_manifest(output)
    difference = _difference(manifest, plan)
    if difference:
        raise InputError(
            f"output folder {output} is a complete data set with {difference}: choose another --output, or remove it"
        )
    try:
        manifest.check_files(output)
    except InputError:
        check_vacant(output)
        return None
    (output / LOCK_NAME).unlink(missing_ok=True)
    return manifest


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
    if manifest.classes != plan.class_entries:
        return f"{len(manifest.classes)} other classes"
    rejected = {(entry.split, entry.source) for entry in manifest.rejected}
    expected = {}
    for shard in plan.shards:
        keys = [s.key for s in shard.samples if (shard.split, printable(s.source)) not in rejected]
        if keys:
            expected[f"{shard.stem}.idx"] = keys
    listed = {shard.index for split in manifest.splits.values() for shard in split.shards}
    if expected.keys() != listed:
        return "another number of images or --shard-samples"
    for index, keys in expected.items():
        path = options.output / index
        if path.is_file() and indexed_keys(path) != keys:
            return "other images or another --shard-samples"
    return None
