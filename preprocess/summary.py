"""Messages of a build: warnings about its input at the beginning, numbers at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from preprocess.images.decoding import why_unreadable
from preprocess.images.formats import MAGIC_BYTES
from preprocess.images.value_range import FEW_LEVELS, LARGEST_OF_12_BITS, ValueRange
from preprocess.manifest import Manifest
from preprocess.plan import Plan
from preprocess.run.pool import Counts
from preprocess.sources.catalogue import RowRef, printable
from preprocess.sources.raw_files import RawFiles
from preprocess.state.build_state import RangeCounts

_KINDS_SHOWN = 8
_LOOKED_AT = 200  # images


def input_warnings(plan: Plan) -> Iterator[str]:
    """Yield a line for each property of the input that people rarely want, and that no error will tell."""
    if plan.source is not None and plan.source.ignored:
        yield f"ignored in {plan.options.input}: {', '.join(map(printable, plan.source.ignored))}"
    images = {split: Counter(image.label for image in plan.catalogue.split(split)) for split in plan.splits}
    classes = plan.catalogue.classes
    numbers = [entry.id for entry in classes if entry.id.isdecimal()]
    if len(numbers) == len(classes) and numbers != sorted(numbers, key=int):
        label = next(label for label, number in enumerate(numbers) if label != int(number))
        yield f"classes are sorted as text: class {numbers[label]!r} gets label {label}; --classes gives other labels"
    if "train" not in images:
        return
    single = [entry.id for label, entry in enumerate(classes) if images["train"][label] == 1]
    if single:
        yield f"{len(single)} of {len(classes)} classes have a single train image, e.g. {single[0]!r}"
    if not images["val"]:
        yield "the val split has no image: no training can be validated on it"
        return
    without = [entry.id for label, entry in enumerate(classes) if not images["val"][label]]
    if without:
        yield f"{len(without)} of {len(classes)} classes have no val image, e.g. {without[0]!r}"


def format_warnings(plan: Plan) -> Iterator[str]:
    """Yield a line for each format that this environment cannot read, from the first bytes of some of the images."""
    if plan.source is None:
        return
    raw, images = RawFiles(plan.source.root, Path()), plan.catalogue.images
    chosen = images[:: max(len(images) // _LOOKED_AT, 1)]
    heads = [raw.head(image.ref, MAGIC_BYTES) for image in chosen if not isinstance(image.ref, RowRef)]
    for reason, count in Counter(filter(None, map(why_unreadable, heads))).items():
        advice = "run ./bootstrap.sh, which says what it needs" if "built without" in reason else "convert them"
        yield f"{count} of {len(heads)} images that were looked at are {reason}; {advice}"


def depth_warning(of_12_bits: int, of_16_bits: int) -> str:
    """Return the line about images that have lost most of their grey levels with the lower 8 of 16 bits."""
    return (
        f"{of_12_bits:,} of {of_16_bits:,} images of 16 bits a channel hold no value above {LARGEST_OF_12_BITS}, and "
        f"at most 16 grey levels of them are left; if their data has 12 bits, use --value-range 0 {LARGEST_OF_12_BITS}"
    )


def range_warnings(counts: RangeCounts, value_range: ValueRange | None) -> Iterator[str]:
    """Yield a line for each way in which the value range does not suit most of the images."""
    if value_range is None or counts.values is None:
        return
    given = f"--value-range {value_range[0]:g} {value_range[1]:g}"
    values = f"their values are {counts.values[0]:g} to {counts.values[1]:g}; use the range of their data"
    if 2 * counts.few_levels > counts.images:
        yield (
            f"{counts.few_levels:,} of {counts.images:,} images use little of {given}, and at most {FEW_LEVELS} grey "
            f"levels of them are left: {values}"
        )
    if 2 * counts.clipped > counts.images:
        yield (
            f"{counts.clipped:,} of {counts.images:,} images have most of their pixels outside of {given}, and these "
            f"are black or white: {values}"
        )


def build_summary(manifest: Manifest, counts: Counts, built: str, seconds: float) -> Iterator[str]:
    """Yield the last lines of a build; `built` says which part of the shards this run has built, if not all."""
    if manifest.rejected:
        yield f"rejected: {describe_counts(Counter(entry.kind for entry in manifest.rejected))}"
    if manifest.skipped:
        yield f"skipped, not images: {describe_counts(manifest.skipped)}"
    parts = " + ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    yield (
        f"{manifest.name}: {parts} samples of {len(manifest.classes)} classes, {len(manifest.rejected)} rejected, "
        f"{built}{seconds:.1f} s, {counts.images / seconds:.0f} images/s, {counts.bytes / 1e6 / seconds:.1f} MB/s"
    )


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return counts by kind in one line, the largest first: `3 .txt, 1 .xml`."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{count:,} {kind}" for kind, count in ordered[:_KINDS_SHOWN]]
    others = sum(count for _, count in ordered[_KINDS_SHOWN:])
    return ", ".join([*shown, *([f"{others:,} others"] if others else [])])
