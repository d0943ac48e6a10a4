"""The build: one task for each planned shard, merged statistics, and the manifest as the commit.

A task is one complete shard and the sums are exact, so the bytes depend neither on the number or order of the workers,
nor on interruptions.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from atomic_files import atomic_write, flush
from errors import InputError
from preprocess import sample
from preprocess.images import color_sums
from preprocess.images.statistics import ColorSums
from preprocess.images.transform import CHROMA, RESAMPLE
from preprocess.manifest import MEAN_IMAGE_NAME, SCHEMA, Manifest, Rejection, Shard, Split, write_manifest
from preprocess.plan import BuildOptions, Plan, PlannedShard, make_plan
from preprocess.run.pool import REASONS_SHOWN, Counts
from preprocess.run.progress import BuildProgress, run_with_progress
from preprocess.run.shard_task import ShardTask, build_shard, still_rejected
from preprocess.shards import label_width
from preprocess.sources.catalogue import printable
from preprocess.sources.raw_files import RawFiles
from preprocess.state.build_state import BuildState, RangeCounts, ShardRecord, changed_shards, resume_build
from preprocess.state.fingerprint import build_fingerprint
from preprocess.state.output import OutputState, claim_output, inspect_output, remove_leftovers, remove_stray_files
from preprocess.summary import depth_warning, describe_counts, format_warnings, input_warnings, range_warnings


@dataclass(frozen=True)
class Outcome:
    """The result of a build."""

    manifest: Manifest
    shards: int
    """Number of shards in the plan."""
    built: int
    """Number of shards that this run has built."""
    counts: Counts
    """Counts of the images processed in this run."""
    nothing_to_do: bool = False
    """True if the folder was complete and intact."""


def build(options: BuildOptions) -> Outcome:
    """Build the folder of shards that `options` describe: all of it, or the missing or broken parts.

    Raises:
        InputError: bad input, or an output folder with different content.
        WorkerDiedError: a worker process was killed.
        OSError: the output cannot be written, e.g. a full disk.
    """
    plan = make_plan(options)
    for warning in (*input_warnings(plan), *format_warnings(plan)):
        print(f"build_shards: {warning}", file=sys.stderr)
    existing = inspect_output(plan)
    if existing.final_manifest is not None and not existing.broken:
        remove_leftovers(options.output)
        return Outcome(existing.final_manifest, len(plan.shards), 0, Counts(), nothing_to_do=True)
    with claim_output(options.output, complete=existing.manifest is not None):
        return _build_rest(plan, existing)


def _build_rest(plan: Plan, existing: OutputState) -> Outcome:
    """Build all shards that are not finished, then statistics and manifest.

    The broken shards of a complete data set are built again; its statistics, if they are there, stay as they are.
    """
    options, repair = plan.options, existing.final_manifest is not None
    fingerprint = build_fingerprint(plan)
    with resume_build(options.output, options.short_side, fingerprint, keep_records=not repair) as build_state:
        raw = _prepare_images(plan, build_state)
        kept = {} if repair else _kept_shards(plan, existing, build_state, raw)
        missing = existing.broken if repair else {shard.stem for shard in plan.shards} - kept.keys()
        pending = [shard for shard in plan.shards if shard.stem in missing]
        counts = _build_shards(plan, pending, kept, existing, raw)
        manifest = existing.final_manifest or _finish(plan, build_state)
        flush(options.output)
    return Outcome(manifest, len(plan.shards), len(pending), counts)


def _prepare_images(plan: Plan, build_state: BuildState) -> RawFiles:
    """Draw the embedded sample, or unpack the images that cannot be read in place; return access to all of them."""
    options = plan.options
    if plan.source is None:
        shutil.rmtree(build_state.drawn, ignore_errors=True)  # of a build that was killed: some may be half-written
        draw = partial(sample.draw, build_state.drawn, options.seed)
        run_with_progress(draw, sample.draw_tasks(options.seed), options, BuildProgress("drawing", plan.images))
        return RawFiles(build_state.drawn, build_state.scratch)
    raw = RawFiles(plan.source.root, build_state.scratch)
    if plan.source.containers:
        progress = BuildProgress("unpacking", sum(container.rows for container in plan.source.containers))
        run_with_progress(raw.unpack, plan.source.containers, options, progress)
    return raw


def _kept_shards(plan: Plan, existing: OutputState, build_state: BuildState, raw: RawFiles) -> dict[str, ShardRecord]:
    """Return the shards that an earlier run has finished, by stem; remove its other files."""
    build_state.discard(existing.broken)
    kept = build_state.finished(plan.shards)
    stale = set() if plan.source is None else changed_shards(plan.shards, kept, raw, plan.options.output)
    unchanged = [shard for shard in plan.shards if shard.stem in kept and shard.stem not in stale]
    stale |= {shard.stem for shard in unchanged if not still_rejected(shard, kept[shard.stem], raw)}
    build_state.discard(stale)
    kept = {stem: record for stem, record in kept.items() if stem not in stale}
    if existing.manifest is None:
        shards = [record.shard for record in kept.values() if record.shard is not None]
        remove_stray_files(plan.options.output, keep={name for shard in shards for name in (shard.tar, shard.index)})
    return kept


def _build_shards(
    plan: Plan, pending: Sequence[PlannedShard], kept: Mapping[str, ShardRecord], existing: OutputState, raw: RawFiles
) -> Counts:
    options, width = plan.options, label_width(len(plan.catalogue.classes))
    tasks = [
        ShardTask(shard, raw, options, label_width=width, expected=existing.shards.get(shard.stem)) for shard in pending
    ]
    before = [entry for record in kept.values() for entry in record.rejected]

    kinds = Counter(entry.kind for entry in before)

    def check_counts(counts: Counts) -> None:
        check_rejected(plan, kinds + Counter(counts.kinds), [*(entry.describe() for entry in before), *counts.reasons])

    if pending:
        color_sums.warn_if_slow()
    done = sum(len(shard.images) for shard in plan.shards if shard.stem in kept)
    progress = BuildProgress("building", done + sum(len(shard.images) for shard in pending), before=done)
    run_with_progress(build_shard, tasks, options, progress, check_counts)
    return progress.counts


def _finish(plan: Plan, build_state: BuildState) -> Manifest:
    """Merge the statistics of all shards, one at a time, and commit the folder as a data set."""
    options = plan.options
    sums = ColorSums(options.short_side)
    shards: dict[str, list[Shard]] = {split: [] for split in plan.splits}
    rejected: list[Rejection] = []
    of_16_bits = of_12_bits = 0
    ranged = RangeCounts()
    for planned, record, part in build_state.load_all(plan.shards):
        of_16_bits += record.of_16_bits
        of_12_bits += record.of_12_bits
        ranged += record.range_counts
        if record.shard is not None:
            shards[planned.split].append(record.shard)
        rejected.extend(record.rejected)
        if part is not None:
            sums.merge(part)
    check_rejected(plan, Counter(entry.kind for entry in rejected), (entry.describe() for entry in rejected))
    check_readable(plan, rejected)
    if of_12_bits:
        print(f"build_shards: {depth_warning(of_12_bits, of_16_bits)}", file=sys.stderr)
    for warning in range_warnings(ranged, options.value_range):
        print(f"build_shards: {warning}", file=sys.stderr)
    atomic_write(options.output / MEAN_IMAGE_NAME, sums.mean_image_file())
    manifest = Manifest(
        schema=SCHEMA,
        name=options.data_name,
        short_side=options.short_side,
        jpeg_quality=options.quality,
        chroma=CHROMA,
        resample=RESAMPLE,
        seed=options.seed,
        classes=plan.catalogue.classes,
        splits={name: Split(sum(shard.samples for shard in listed), tuple(listed)) for name, listed in shards.items()},
        color_stats=replace(sums.finish(MEAN_IMAGE_NAME), split=plan.splits[0]),
        rejected=tuple(rejected),
        apply_exif=options.apply_exif,
        value_range=options.value_range,
        skipped={} if plan.source is None else dict(sorted(plan.source.skipped.items())),
    )
    manifest.check_files(options.output)
    flush(options.output)
    write_manifest(options.output, manifest)
    return manifest


def check_rejected(plan: Plan, kinds: Mapping[str, int], reasons: Iterable[str]) -> None:
    """Raise `InputError` when more images are rejected than the options allow, with their number by kind of reason.

    The number only grows during a build, so the result depends only on the last call. `reasons` are examples.
    """
    rejected = sum(kinds.values())
    fraction, allowed = rejected / plan.images, plan.options.max_rejected
    if fraction > allowed:
        skipped = {} if plan.source is None else plan.source.skipped
        raise InputError(
            f"--max-rejected is {allowed:g}: {rejected} of {plan.images} images are rejected, {fraction:.2%} "
            f"({describe_counts(kinds)}){f'; not images: {describe_counts(skipped)}' if skipped else ''}; "
            f"repair the source, or use a larger value; e.g. {'; '.join(islice(reasons, REASONS_SHOWN))}"
        )


def check_readable(plan: Plan, rejected: Sequence[Rejection]) -> None:
    """Raise `InputError` if the first split has no readable image, or none of a class that train is to have."""
    entries = {entry.source: entry for entry in rejected}
    train = plan.catalogue.split(plan.splits[0])
    readable = {image.label for image in train if printable(image.canonical_name) not in entries}
    if not readable:
        raise InputError(f"no image of {plan.splits[0]} is readable, e.g. {rejected[0].describe()}; repair the source")
    there = {image.label for image in train} if plan.splits[0] == "train" else ()
    for label, known in enumerate(plan.catalogue.classes):
        if label in there and label not in readable:
            lost = [entries[printable(image.canonical_name)] for image in train if image.label == label]
            raise InputError(
                f"class {known.id!r} has no readable image ({describe_counts(Counter(entry.kind for entry in lost))}), "
                f"e.g. {lost[0].describe()}; repair them, or remove the class"
            )
