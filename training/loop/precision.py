"""The number format of the forward and backward passes, and the scale of the loss that float16 needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch.amp import GradScaler

from training.parallel.layout import Layout

Precision = Literal["auto", "float32", "bfloat16", "float16"]
NumberFormat = Literal["bfloat16", "float16", "float32"]

_FORMATS: Sequence[NumberFormat] = ("bfloat16", "float16", "float32")
"""In the order in which workers of different devices give way to each other."""
_BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Flags of CPUs that multiply bfloat16 faster than float32. On others it is emulated and many times slower."""
NO_SCALING = GradScaler("cpu", enabled=False)
"""What `training.loop.step` needs for the other formats: it changes nothing."""


def choose_format(precision: Precision, device: torch.device) -> tuple[NumberFormat, str]:
    """Return the format that `precision` means on `device`, and the reason where it is another one or `auto`.

    `auto` is bfloat16 where the hardware multiplies it. GPUs without bfloat16 units (before Ampere: V100, T4) take
    float16 for it, which has the same speed there and needs a scale of the loss (Micikevicius et al. 2018, Mixed
    Precision Training, section 3.2). Weights, gradients and the optimizer stay in float32; the others are autocast.
    """
    if precision in ("float32", "float16"):
        return precision, ""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", f"{name} has bfloat16 units" if precision == "auto" else ""
        return "float16", f"{name} has no bfloat16 units; the loss is scaled"
    if precision == "bfloat16":
        return precision, ""
    flags = [flag for flag in _BFLOAT16_FLAGS if flag in _cpu_flags()]
    if flags:
        return "bfloat16", f"the CPU has {flags[0]}"
    return "float32", f"the CPU has neither {' nor '.join(_BFLOAT16_FLAGS)}"


def agree_on_format(precision: Precision, layout: Layout) -> tuple[NumberFormat, str]:
    """Return `choose_format` of all workers, which may have different devices; all must call it together."""
    own, reason = choose_format(precision, layout.device)
    agreed = _FORMATS[layout.max_of(_FORMATS.index(own))]
    return agreed, reason if agreed == own else "another worker has no bfloat16"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which a forward pass and its loss run."""
    number_format, _ = choose_format(precision, device)
    dtype = torch.float16 if number_format == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=number_format != "float32")


def make_scaler(number_format: NumberFormat, layout: Layout) -> GradScaler:
    """Return the scale of the loss: for float16 as large as its gradients bear, for others none.

    A step whose gradients overflow on any device is left out on all of them, and the scale is halved; after 2,000
    steps without, it is doubled.
    """
    if number_format != "float16":
        return NO_SCALING
    if layout.mesh_group is None:
        return GradScaler(layout.device.type)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # seconds that others need not spend

    return ShardedGradScaler(layout.device.type, process_group=layout.mesh_group)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
