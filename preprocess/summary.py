"""The last lines of a build: what was skipped and what was made, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from preprocess.manifest import Manifest
from preprocess.run.pool import Counts

_KINDS_SHOWN = 8


def build_summary(manifest: Manifest, counts: Counts, built: str, seconds: float) -> Iterator[str]:
    """Yield the last lines of a build; `built` says which part of the shards this run has built, if not all."""
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
