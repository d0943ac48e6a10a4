"""The number format of the forward and backward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Resolve `auto` on `device`: bfloat16 where the hardware multiplies it, float32 elsewhere.

    Weights, gradients and the optimizer stay in float32; bfloat16 is autocast. On a CPU with AMX it is several times
    as fast as float32; on others it is emulated and many times slower.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if _cpu_has_amx_bf16() else "float32"


def _cpu_has_amx_bf16() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which a forward pass and its loss run."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=resolve_precision(precision, device) == "bfloat16")
