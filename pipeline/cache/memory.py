"""Kinds of caches, and the memory that is left for them."""

from __future__ import annotations

from typing import Literal

import torch

from machine_limits import available_memory

CacheKind = Literal["none", "host", "device"]


def available_bytes(device: torch.device) -> int:
    """Return what can still be allocated: free memory of a GPU, or of the host within the limits of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return available_memory()
