"""Whether finished shards were built from the files that the source has today: nothing else may be put beside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from errors import InputError
from preprocess.plan import PlannedShard
from preprocess.sources import RawFiles, printable
from preprocess.state.build_state import ShardRecord

_CHANGED_FILES = 1 / 8  # so many may have changed, and their shards are built again: a source may be mended


def changed_shards(
    shards: Sequence[PlannedShard], records: Mapping[str, ShardRecord], raw: RawFiles, output: Path
) -> set[str]:
    """Return the stems of finished shards of which a file has another size or time than when they were built.

    What was touched, or copied without its times, counts as changed: building some shards again is cheaper than a
    look into every file, and a mixture of two sources would not be found later. A line on stderr says so.

    Args:
        shards: of the plan.
        records: of the finished ones, by stem.
        raw: where the images are.
        output: the folder that holds the shards.

    Raises:
        InputError: so many files have changed that this is another source.
    """
    stems, changed, files = set(), [], 0
    for shard in shards:
        if shard.stem not in records:
            continue
        now = raw.stamps(image.ref for image in shard.images)
        before = dict(zip(now, records[shard.stem].stamps, strict=True))
        other = [file for file in now if now[file] != before[file]]
        files += len(now)
        changed += other
        if other:
            stems.add(shard.stem)
    if len(changed) > _CHANGED_FILES * files:
        raise InputError(
            f"output folder {output} holds an unfinished build with other image files: {printable(changed[0])} and "
            f"{len(changed) - 1} more have changed in size or time since; put them back with their times, choose "
            "another --output, or remove the folder"
        )
    if stems:
        print(
            f"build_shards: {printable(changed[0])!r} and {len(changed) - 1} more files have changed in size or time "
            f"since their shards were finished: {len(stems)} shards are built again",
            file=sys.stderr,
        )
    return stems
