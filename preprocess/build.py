"""The build: a plan of shards, a process for each shard that is free, statistics merged, the manifest last.

The plan is made from the sources' names, the options and the seed alone, and a task is one whole shard; so neither
the number of workers nor the order in which they end shows in the bytes.
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
from preprocess.images import CHROMA, RESAMPLE, UnreadableImage, make_sample
from preprocess.manifest import (
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    SCHEMA,
    ClassEntry,
    InputError,
    Manifest,
    Rejection,
    Rgb,
    Shard,
    Split,
    parse_manifest,
    write_manifest,
)
from preprocess.output_folder import (
    DRAWN_NAME,
    LOCK_NAME,
    check_vacant,
    claimed,
    flush_folder,
    write_whole,
)
from preprocess.progress import Progress
from preprocess.rgb_statistics import RgbSums
from preprocess.shards import ShardWriter, indexed_keys, label_width, sample_keys, shard_stem
from preprocess.sources import SPLITS, Catalogue, list_class_folders, printable, read_bytes, shuffle_key
from preprocess.workers import Tally, run_tasks


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for; the command line's options, checked."""

    input: Path | None
    """Folder of raw images; None for the embedded sample."""
    output: Path
    """Folder to write; absent, empty, or left by an earlier build."""
    name: str | None = None
    """The data set's name; None for the input folder's, or `sample`."""
    short_side: int = 256
    """Pixels of every sample's short side, 1 to 4000."""
    quality: int = 95
    """JPEG quality, 1 to 100."""
    seed: int = 0
    """Decides the order of the samples, which images are kept for val, and the sample's drawings."""
    workers: int = 1
    """Processes; they change nothing but the time."""
    val_fraction: float | None = None
    """Part of each class to keep for val, 0 or more and below 1, where the input has no val split."""
    shard_samples: int = 1000
    """Images in a shard, at most."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value out of range."""
        # 16 times 4000 is the longest side that a JPEG can have.
        for field, low, high in (("short_side", 1, 4000), ("quality", 1, 100)):
            value = getattr(self, field)
            if not low <= value <= high:
                raise InputError(f"{_flag(field)} is {value}; it must be between {low} and {high}")
        for field in ("workers", "shard_samples"):
            if getattr(self, field) < 1:
                raise InputError(f"{_flag(field)} is {getattr(self, field)}; it must be at least 1")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction is {self.val_fraction}; it must be at least 0 and below 1")
        if self.input is None and self.val_fraction is not None:
            raise InputError("--val-fraction needs --input: the embedded sample has its own val split")

    @property
    def data_name(self) -> str:
        """Return the data set's name."""
        if self.name is not None:
            return self.name
        return sample.NAME if self.input is None else printable(self.input.resolve().name)


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One image on its way into a shard."""

    key: str
    label: int
    source: str


@dataclass(frozen=True)
class PlannedShard:
    """One shard before it is built: at most `shard_samples` images of one split, in their final order."""

    stem: str
    split: str
    samples: tuple[PlannedSample, ...]


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs in order to build one shard."""

    shard: PlannedShard
    root: Path
    output: Path
    short_side: int
    quality: int
    label_width: int


@dataclass(frozen=True)
class BuiltShard:
    """What a worker made of a task; `shard` is None when every image was rejected."""

    split: str
    shard: Shard | None
    rejected: tuple[Rejection, ...]
    sums: RgbSums | None


def build(options: BuildOptions) -> tuple[Manifest, bool]:
    """Build the folder of shards that `options` describe.

    Returns:
        The manifest, and whether anything was built: False over a folder that was already complete.

    Raises:
        InputError: bad input, or an output folder that holds anything else.
        WorkerDiedError: a worker process was killed.
        OSError: the output cannot be written, e.g. a full disk.
    """
    catalogue = _catalogue(options)
    plan = plan_shards(catalogue, options.seed, options.shard_samples)
    complete = _complete_manifest(options, catalogue, plan)
    if complete is not None:
        return complete, False
    with claimed(options.output):
        root = options.input
        if root is None:
            root = options.output / DRAWN_NAME
            _draw_sample(root, options)
        built = _build_shards(plan, root, options, len(catalogue.classes))
        _check_readable(catalogue, built)
        manifest = _describe(options, catalogue.classes, built)
        if options.input is None:
            shutil.rmtree(root)
        flush_folder(options.output)
        write_manifest(options.output, manifest)
        flush_folder(options.output)
    return manifest, True


def plan_shards(catalogue: Catalogue, seed: int, shard_samples: int) -> list[PlannedShard]:
    """Shuffle each split by the seed and cut it into shards whose sizes differ by one at most."""
    keys = dict(
        zip(
            [image.source for image in catalogue.images],
            sample_keys([image.source for image in catalogue.images]),
            strict=True,
        )
    )
    plan = []
    for split in SPLITS:
        images = sorted(catalogue.split(split), key=lambda image: shuffle_key("order", seed, image.source))
        shards = -(-len(images) // shard_samples)
        for number in range(shards):
            part = images[number * len(images) // shards : (number + 1) * len(images) // shards]
            samples = tuple(PlannedSample(keys[image.source], image.label, image.source) for image in part)
            plan.append(PlannedShard(shard_stem(split, number), split, samples))
    return plan


def build_shard(task: ShardTask, tally: Tally) -> BuiltShard:
    """Decode, resize, encode and write the images of one shard, in order; list what cannot be decoded."""
    train = task.shard.split == "train"
    sums = RgbSums(task.short_side) if train else None
    rejected = []
    with ShardWriter(task.output, task.shard.stem) as writer:
        for planned in task.shard.samples:
            try:
                data = read_bytes(task.root, planned.source)
                pixels, jpeg = make_sample(data, task.short_side, task.quality)
            except UnreadableImage as error:
                rejected.append(Rejection(task.shard.split, printable(planned.source), str(error)))
                tally.count(rejected=True)
                continue
            if sums is not None:
                sums.add(pixels)
            writer.add(planned.key, jpeg, f"{planned.label:0{task.label_width}d}")
            tally.count()
        shard = writer.commit() if writer.samples else None
    return BuiltShard(task.shard.split, shard, tuple(rejected), sums)


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _catalogue(options: BuildOptions) -> Catalogue:
    if options.input is None:
        return Catalogue.of(sample.listing())
    if options.output.resolve().is_relative_to(options.input.resolve()):
        raise InputError(f"output {options.output} lies in the input folder {options.input}: choose another")
    return Catalogue.of(list_class_folders(options.input, options.val_fraction, options.seed))


def _complete_manifest(options: BuildOptions, catalogue: Catalogue, plan: Sequence[PlannedShard]) -> Manifest | None:
    """Return the manifest of an output folder that is complete and the same; None when there is work to do."""
    if not (options.output / MANIFEST_NAME).is_file():
        check_vacant(options.output)
        return None
    manifest = parse_manifest(options.output)
    difference = _difference(manifest, options, catalogue, plan)
    if difference:
        raise InputError(
            f"output folder {options.output} is a complete data set with {difference}: "
            "choose another --output, or remove it"
        )
    try:
        manifest.check_files(options.output)
    except InputError:
        check_vacant(options.output)
        return None
    (options.output / LOCK_NAME).unlink(missing_ok=True)
    return manifest


def _difference(
    manifest: Manifest, options: BuildOptions, catalogue: Catalogue, plan: Sequence[PlannedShard]
) -> str | None:
    """Say in what a complete data set differs from the one asked for, as far as names can tell."""
    pairs = (
        ("name", manifest.name, options.data_name),
        ("short side", manifest.short_side, options.short_side),
        ("quality", manifest.jpeg_quality, options.quality),
        ("seed", manifest.seed, options.seed),
    )
    for what, there, asked in pairs:
        if there != asked:
            return f"{what} {there}, not {asked}"
    if manifest.classes != _class_entries(catalogue.classes):
        return f"{len(manifest.classes)} other classes"
    rejected = {(entry.split, entry.source) for entry in manifest.rejected}
    expected = {}
    for shard in plan:
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


def _draw_sample(folder: Path, options: BuildOptions) -> None:
    tasks = sample.draw_tasks(folder, options.seed)
    with Progress("drawing", sum(len(task.sources) for task in tasks)) as progress:
        run_tasks(sample.draw, tasks, options.workers, progress.show)


def _build_shards(
    plan: Sequence[PlannedShard], root: Path, options: BuildOptions, num_classes: int
) -> list[BuiltShard]:
    tasks = [
        ShardTask(shard, root, options.output, options.short_side, options.quality, label_width(num_classes))
        for shard in plan
    ]
    with Progress("building", sum(len(shard.samples) for shard in plan)) as progress:
        return run_tasks(build_shard, tasks, options.workers, progress.show)


def _check_readable(catalogue: Catalogue, built: Sequence[BuiltShard]) -> None:
    """Raise `InputError` for a class of which no image of the train split could be read."""
    reasons = {entry.source: entry.reason for shard in built for entry in shard.rejected}
    train = catalogue.split("train")
    readable = Counter(image.label for image in train if printable(image.source) not in reasons)
    for label, name in enumerate(catalogue.classes):
        if not readable[label]:
            first = next(printable(image.source) for image in train if image.label == label)
            raise InputError(f"class {printable(name)!r} has no readable image, e.g. {first}: {reasons[first]}")


def _describe(options: BuildOptions, classes: Sequence[str], built: Sequence[BuiltShard]) -> Manifest:
    """Write the mean image and return the manifest."""
    splits = {}
    for split in SPLITS:
        shards = tuple(entry.shard for entry in built if entry.split == split and entry.shard is not None)
        splits[split] = Split(sum(shard.samples for shard in shards), shards)
    return Manifest(
        schema=SCHEMA,
        name=options.data_name,
        short_side=options.short_side,
        jpeg_quality=options.quality,
        chroma=CHROMA,
        resample=RESAMPLE,
        seed=options.seed,
        classes=_class_entries(classes),
        splits=splits,
        rgb=_statistics(options, built),
        rejected=tuple(entry for shard in built for entry in shard.rejected),
    )


def _statistics(options: BuildOptions, built: Sequence[BuiltShard]) -> Rgb:
    total = RgbSums(options.short_side)
    for entry in built:
        if entry.sums is not None:
            total.merge(entry.sums)
    buffer = io.BytesIO()
    np.save(buffer, total.mean_image())
    write_whole(options.output / MEAN_IMAGE_NAME, buffer.getvalue())
    return total.finish(MEAN_IMAGE_NAME)


def _class_entries(classes: Sequence[str]) -> tuple[ClassEntry, ...]:
    return tuple(ClassEntry(id=printable(name), name=printable(name)) for name in classes)
