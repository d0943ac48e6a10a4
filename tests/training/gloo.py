"""Real gloo processes for tests: each is one device of a mesh."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from training.parallel import Layout, make_layout

Shape = tuple[int, int]
"""Sizes of the axes `data` and `model`."""


@contextmanager
def in_group(rank: int, shape: Shape, meeting: Path, *, hybrid: bool) -> Iterator[Layout]:
    """Be process `rank` of a mesh whose processes meet at a file that is not there yet."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=shape[0] * shape[1])
    yield make_layout(torch.device("cpu"), *shape, hybrid)
    dist.barrier()
    dist.destroy_process_group()
