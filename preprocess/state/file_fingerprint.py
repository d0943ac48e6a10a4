"""What tells that a file of the source is still the one that a finished shard was built from: size and time of change.

Nothing of it shows in the data set. A file that was touched, or copied without its times, counts as another one: that
costs the building of its shards, where a mixture of two sources would cost the data set.
"""

from __future__ import annotations

from pathlib import Path

Stamp = tuple[int, int] | None
"""Size in bytes and `mtime_ns`; None for a file that is not there."""


def stamp(path: Path) -> Stamp:
    """Return size and time of a file, links followed."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
