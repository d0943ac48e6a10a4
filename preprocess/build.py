"""The build: one task for each planned shard, statistics merged, the manifest last.

A task is one whole shard and the sums are exact, so neither the number of workers nor the order in which they end
shows in the bytes.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess import sample
from preprocess.finished import finished_manifest
from preprocess.images import CHROMA, RESAMPLE, UnreadableImage, make_sample
from preprocess.manifest import (
    MEAN_IMAGE_NAME,
    SCHEMA,
    InputError,
    Manifest,
    Rejection,
    Shard,
    Split,
    write_manifest,
)
from preprocess.output_folder import DRAWN_NAME, claimed, flush_folder, write_whole
from preprocess.plan import BuildOptions, Plan, PlannedShard, make_plan
from preprocess.progress import Progress
from preprocess.rgb_statistics import RgbSums
from preprocess.shards import ShardWriter, label_width
from preprocess.sources import SPLITS, Catalogue, printable, read_bytes
from preprocess.workers import Tally, run_tasks


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs in order to build one shard."""

    shard: PlannedShard
    root: Path
    output: Path
    short_side: int
    quality: int
    label_width: int
    apply_exif: bool


@dataclass(frozen=True)
class BuiltShard:
    """What a worker made of a task; `shard` is None when every image was rejected."""

    split: str
    shard: Shard | None
    rejected: tuple[Rejection, ...]


def build(options: BuildOptions) -> tuple[Manifest, bool]:
    """Build the folder of shards that `options` describe.

    Returns:
        The manifest, and whether anything was built: False over a folder that was already complete.

    Raises:
        InputError: bad input, or an output folder that holds anything else.
        WorkerDiedError: a worker process was killed.
        OSError: the output cannot be written, e.g. a full disk.
    """
    plan = make_plan(options)
    finished = finished_manifest(plan)
    if finished is not None:
        return finished, False
    with claimed(options.output):
        root = options.input
        if root is None:
            root = options.output / DRAWN_NAME
            _draw_sample(root, options)
        built, sums = _build_shards(plan, root)
        _check_readable(plan.catalogue, built)
        manifest = _describe(plan, built, sums)
        if options.input is None:
            shutil.rmtree(root)
        flush_folder(options.output)
        write_manifest(options.output, manifest)
        flush_folder(options.output)
    return manifest, True


def build_shard(task: ShardTask, tally: Tally) -> tuple[BuiltShard, RgbSums | None]:
    """Decode, resize, encode and write the images of one shard, in order; list what cannot be decoded.

    Returns:
        What was built, and the sums over its pixels if it belongs to the train split.
    """
    sums = RgbSums(task.short_side) if task.shard.split == "train" else None
    rejected = []
    with ShardWriter(task.output, task.shard.stem) as writer:
        for planned in task.shard.samples:
            try:
                data = read_bytes(task.root, planned.source)
                pixels, jpeg = make_sample(data, task.short_side, task.quality, task.apply_exif)
            except UnreadableImage as error:
                rejected.append(Rejection(task.shard.split, printable(planned.source), str(error)))
                tally.count(rejected=True)
                continue
            if sums is not None:
                sums.add(pixels)
            writer.add(planned.key, jpeg, f"{planned.label:0{task.label_width}d}")
            tally.count()
        shard = writer.commit() if writer.samples else None
    return BuiltShard(task.shard.split, shard, tuple(rejected)), sums


def _draw_sample(folder: Path, options: BuildOptions) -> None:
    tasks = sample.draw_tasks(folder, options.seed)
    with Progress("drawing", sum(len(task.sources) for task in tasks)) as progress:
        run_tasks(sample.draw, tasks, options.workers, progress.show, lambda *_: None)


def _build_shards(plan: Plan, root: Path) -> tuple[list[BuiltShard], RgbSums]:
    options, width = plan.options, label_width(len(plan.catalogue.classes))
    tasks = [
        ShardTask(shard, root, options.output, options.short_side, options.quality, width, options.apply_exif)
        for shard in plan.shards
    ]
    built: dict[int, BuiltShard] = {}
    total = RgbSums(options.short_side)

    def collect(number: int, result: tuple[BuiltShard, RgbSums | None]) -> None:
        built[number], sums = result
        if sums is not None:
            total.merge(sums)

    with Progress("building", sum(len(shard.samples) for shard in plan.shards)) as progress:
        run_tasks(build_shard, tasks, options.workers, progress.show, collect)
    return [built[number] for number in range(len(tasks))], total


def _check_readable(catalogue: Catalogue, built: Sequence[BuiltShard]) -> None:
    """Raise `InputError` for a class of which no image of the train split could be read."""
    reasons = {entry.source: entry.reason for shard in built for entry in shard.rejected}
    train = catalogue.split("train")
    readable = Counter(image.label for image in train if printable(image.source) not in reasons)
    for label, name in enumerate(catalogue.classes):
        if not readable[label]:
            first = next(printable(image.source) for image in train if image.label == label)
            raise InputError(f"class {printable(name)!r} has no readable image, e.g. {first}: {reasons[first]}")


def _describe(plan: Plan, built: Sequence[BuiltShard], sums: RgbSums) -> Manifest:
    """Write the mean image and return the manifest."""
    options = plan.options
    splits = {}
    for split in SPLITS:
        shards = tuple(entry.shard for entry in built if entry.split == split and entry.shard is not None)
        splits[split] = Split(sum(shard.samples for shard in shards), shards)
    mean_image = io.BytesIO()
    np.save(mean_image, sums.mean_image())
    write_whole(options.output / MEAN_IMAGE_NAME, mean_image.getvalue())
    return Manifest(
        schema=SCHEMA,
        name=options.data_name,
        short_side=options.short_side,
        jpeg_quality=options.quality,
        chroma=CHROMA,
        resample=RESAMPLE,
        seed=options.seed,
        classes=plan.class_entries,
        splits=splits,
        rgb=sums.finish(MEAN_IMAGE_NAME),
        rejected=tuple(entry for shard in built for entry in shard.rejected),
        apply_exif=options.apply_exif,
    )
