"""Real processes for tests, each one device of a mesh: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from training.parallel.layout import Layout, make_layout

Shape = tuple[int, int]
"""Sizes of the axes `data` and `model`."""


@contextmanager
def in_group(rank: int, shape: Shape, meeting: Path, *, hybrid: bool, gpus: bool = False) -> Iterator[Layout]:
    """Be process `rank` of a mesh whose processes meet at a file that is not there yet; with `gpus` on GPU `rank`."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=shape[0] * shape[1])
    layout = make_layout(device, shape[:1], shape[1], hybrid=hybrid)
    assert layout is not None
    yield layout
    dist.barrier()
    dist.destroy_process_group()
