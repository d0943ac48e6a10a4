"""The build: one task for each planned shard, statistics merged, the manifest the commit.

A task is one whole shard and the sums are exact, so neither the number of workers, nor the order in which they end,
nor how often the build was interrupted shows in the bytes.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atomic_files import flush_folder, write_whole
from preprocess import sample
from preprocess.images import color_sums
from preprocess.images.statistics import RgbSums
from preprocess.images.transform import CHROMA, RESAMPLE
from preprocess.manifest import (
    MEAN_IMAGE_NAME,
    SCHEMA,
    Manifest,
    Rejection,
    Shard,
    Split,
    write_manifest,
)
from preprocess.plan import BuildOptions, Plan, PlannedShard, make_plan
from preprocess.rejections import check_readable, check_rejected, describe
from preprocess.run.pool import Counts
from preprocess.run.progress import Progress
from preprocess.run.run_with_progress import run_shown
from preprocess.run.shard_task import ShardTask, build_shard, is_rejected_still
from preprocess.shards import label_width
from preprocess.sources import SPLITS, RawFiles, printable, unpack
from preprocess.state.build_fingerprint import identity
from preprocess.state.build_state import ShardRecord, Unfinished, continued
from preprocess.state.changed_source import changed_shards
from preprocess.state.output import Existing, look_at_output
from preprocess.state.output_folder import claimed, remove_leftovers, remove_strays


@dataclass(frozen=True)
class Outcome:
    """What a build has come to."""

    manifest: Manifest
    shards: int
    """How many shards the plan has."""
    built: int
    """How many of them this run has built."""
    counts: Counts
    """The images that it built them from."""
    nothing_to_do: bool = False
    """Whether the folder was complete and whole."""


def build(options: BuildOptions) -> Outcome:
    """Build the folder of shards that `options` describe, or what of it is not there yet, or broken.

    Raises:
        InputError: bad input, or an output folder that holds anything else.
        WorkerDiedError: a worker process was killed.
        OSError: the output cannot be written, e.g. a full disk.
    """
    plan = make_plan(options)
    if plan.source is not None and plan.source.ignored:
        names = ", ".join(map(printable, plan.source.ignored))
        print(f"build_shards: not looked at in {options.input}: the folders {names}", file=sys.stderr)
    existing = look_at_output(plan)
    if existing.is_whole:
        remove_leftovers(options.output)
        return Outcome(existing.complete, len(plan.shards), 0, Counts(), nothing_to_do=True)
    build_rest = _mend if existing.has_statistics else _build_or_continue
    with claimed(options.output, complete=existing.manifest is not None):
        return build_rest(plan, existing)


def _mend(plan: Plan, existing: Existing) -> Outcome:
    """Build again the broken shards of a complete data set; its statistics stay what they are."""
    options = plan.options
    with continued(options.output, options.short_side, identity(plan), keep_records=False) as unfinished:
        raw = _prepare_images(plan, unfinished)
        pending = [shard for shard in plan.shards if shard.stem in existing.broken]
        counts = _build_shards(plan, pending, {}, existing, raw)
        flush_folder(options.output)
    return Outcome(existing.complete, len(plan.shards), len(pending), counts)


def _build_or_continue(plan: Plan, existing: Existing) -> Outcome:
    """Build all shards but those that an earlier run has finished, then statistics and manifest."""
    options = plan.options
    with continued(options.output, options.short_side, identity(plan), keep_records=True) as unfinished:
        raw = _prepare_images(plan, unfinished)
        kept = _kept_shards(plan, existing, unfinished, raw)
        pending = [shard for shard in plan.shards if shard.stem not in kept]
        counts = _build_shards(plan, pending, kept, existing, raw)
        manifest = _finish(plan, unfinished)
        flush_folder(options.output)
    return Outcome(manifest, len(plan.shards), len(pending), counts)


def _prepare_images(plan: Plan, unfinished: Unfinished) -> RawFiles:
    """Return where the raw images are, after they were drawn or unpacked where they cannot be read in place."""
    options = plan.options
    if plan.source is None:
        shutil.rmtree(unfinished.drawn, ignore_errors=True)  # of a build that was killed: some may be half-written
        drawing = sample.draw_tasks(unfinished.drawn, options.seed)
        run_shown(sample.draw, drawing, options, Progress("drawing", plan.images))
        return RawFiles(unfinished.drawn, unfinished.scratch)
    unpacking = plan.source.unpack_tasks(unfinished.scratch)
    if unpacking:
        progress = Progress("unpacking", sum(task.container.rows for task in unpacking))
        run_shown(unpack, unpacking, options, progress)
    return RawFiles(plan.source.root, unfinished.scratch)


def _kept_shards(plan: Plan, existing: Existing, unfinished: Unfinished, raw: RawFiles) -> dict[str, ShardRecord]:
    """Return the shards that an earlier run has finished, by stem; remove whatever else it has left."""
    unfinished.discard(existing.broken)
    records = unfinished.finished(plan.shards)
    if plan.source is not None:  # the sample is drawn, the same each time
        other = changed_shards(plan.shards, records, raw, plan.options.output)
        unfinished.discard(other)
        records = {stem: record for stem, record in records.items() if stem not in other}
    mended = {
        shard.stem
        for shard in plan.shards
        if shard.stem in records and not is_rejected_still(shard, records[shard.stem], raw)
    }
    unfinished.discard(mended)
    kept = {stem: record for stem, record in records.items() if stem not in mended}
    if existing.manifest is None:
        shards = [record.shard for record in kept.values() if record.shard is not None]
        remove_strays(plan.options.output, keep={name for shard in shards for name in (shard.tar, shard.index)})
    return kept


def _build_shards(
    plan: Plan, pending: Sequence[PlannedShard], kept: Mapping[str, ShardRecord], existing: Existing, raw: RawFiles
) -> Counts:
    options, width = plan.options, label_width(len(plan.catalogue.classes))
    tasks = [
        ShardTask(
            shard=shard,
            raw=raw,
            output=options.output,
            short_side=options.short_side,
            quality=options.quality,
            apply_exif=options.apply_exif,
            label_width=width,
            expected=existing.shards.get(shard.stem),
        )
        for shard in pending
    ]
    before = [entry for record in kept.values() for entry in record.rejected]

    def watch(counts: Counts) -> None:
        check_rejected(plan, len(before) + counts.rejected, [*map(describe, before), *counts.reasons])

    if pending:
        color_sums.prepare()
    done = sum(len(shard.images) for shard in plan.shards if shard.stem in kept)
    progress = Progress("building", done + sum(len(shard.images) for shard in pending), before=done)
    return run_shown(build_shard, tasks, options, progress, watch=watch)


def _finish(plan: Plan, unfinished: Unfinished) -> Manifest:
    """Put together what the shards have left, one at a time, and commit the folder as a data set."""
    options = plan.options
    sums = RgbSums(options.short_side)
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    rejected: list[Rejection] = []
    for planned, record, part in unfinished.load_all(plan.shards):
        if record.shard is not None:
            shards[planned.split].append(record.shard)
        rejected.extend(record.rejected)
        if part is not None:
            sums.merge(part)
    check_rejected(plan, len(rejected), map(describe, rejected))
    check_readable(plan.catalogue, rejected)
    write_whole(options.output / MEAN_IMAGE_NAME, sums.mean_image_file())
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
        color_stats=sums.finish(MEAN_IMAGE_NAME),
        rejected=tuple(rejected),
        apply_exif=options.apply_exif,
    )
    manifest.check_files(options.output)
    flush_folder(options.output)
    write_manifest(options.output, manifest)
    return manifest
