"""The task of a worker: build one shard and record it as finished."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from preprocess.images.statistics import ColorSums
from preprocess.images.transform import UnreadableImage, make_sample
from preprocess.images.value_range import LARGEST_OF_12_BITS, RangeUse
from preprocess.manifest import Rejection, Shard
from preprocess.plan import BuildOptions, PlannedShard
from preprocess.run.pool import Tally
from preprocess.shards import ShardWriter
from preprocess.sources.catalogue import printable
from preprocess.sources.raw_files import RawFiles
from preprocess.state.build_state import RangeCounts, ShardRecord, save_record


@dataclass(frozen=True)
class ShardTask:
    """Input of the task that builds one shard."""

    shard: PlannedShard
    raw: RawFiles
    options: BuildOptions
    label_width: int
    expected: Shard | None
    """The shard in the manifest, if there is one; the result must equal it."""


def build_shard(task: ShardTask, tally: Tally) -> None:
    """Decode, resize, encode and write the images of one shard in order; record it and its rejections.

    Raises:
        InputError: the shard differs from the expected one.
        OSError: it cannot be written, e.g. on a full disk.
    """
    options = task.options
    sums = ColorSums(options.short_side) if task.shard.in_statistics else None
    rejected: list[Rejection] = []
    digests: list[str] = []
    ranged: list[RangeUse] = []
    of_16_bits = of_12_bits = 0
    fingerprints = task.raw.fingerprints(image.ref for image in task.shard.images)  # before they are read
    with ShardWriter(options.output, task.shard.stem) as writer:
        for key, image in task.shard.samples():
            data = b""
            try:
                data = task.raw.read(image.ref)
                pixels, jpeg, largest, use = make_sample(
                    data, options.short_side, options.quality, options.apply_exif, options.value_range
                )
            except UnreadableImage as error:
                rejected.append(Rejection(task.shard.split, printable(image.canonical_name), str(error)))
                digests.append(hashlib.sha256(data).hexdigest())
                tally.count(size=len(data), rejected=rejected[-1].describe(), kind=rejected[-1].kind)
                continue
            if sums is not None:
                sums.add(pixels)
            if largest is not None:
                of_16_bits += 1
                of_12_bits += largest <= LARGEST_OF_12_BITS
            if use is not None:
                ranged.append(use)
            writer.add(key, jpeg, f"{image.label:0{task.label_width}d}")
            tally.count(size=len(data))
        shard = writer.commit(task.expected) if writer.samples else None
    index_bytes = (options.output / shard.index).stat().st_size if shard else 0
    record = ShardRecord(
        shard,
        index_bytes,
        tuple(rejected),
        tuple(digests),
        tuple(fingerprints.values()),
        of_16_bits,
        of_12_bits,
        RangeCounts.of(ranged),
    )
    save_record(options.output, task.shard.stem, record, sums)


def still_rejected(shard: PlannedShard, record: ShardRecord, raw: RawFiles) -> bool:
    """Return True if the files of a finished shard's rejected images have not changed."""
    refs = {printable(image.canonical_name): image.ref for image in shard.images}
    for entry, digest in zip(record.rejected, record.digests, strict=True):
        try:
            data = raw.read(refs[entry.source])
        except UnreadableImage:
            data = b""
        if hashlib.sha256(data).hexdigest() != digest:
            return False
    return True
