"""Where a cache may be, and how much memory there is for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import psutil
import torch

CacheKind = Literal["none", "host", "device"]

CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Return what can still be allocated: free memory of a GPU, or of the host within the limit of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return min([psutil.virtual_memory().available, *_left_in_container()])


def _left_in_container() -> list[int]:
    """Return the memory left under the container's limit (cgroup version 2 or 1); empty without a limit."""
    for limit, usage, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most = (CGROUP / limit).read_text().strip()
            used = int((CGROUP / usage).read_text())
            fields = dict(line.split() for line in (CGROUP / stat).read_text().splitlines())
        except (OSError, ValueError):
            continue
        # The page cache counts as used, but gives way.
        return [] if most == "max" else [int(most) - used + int(fields.get(cached, 0))]
    return []
