"""Fixtures of the loader's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_folders import cut, texture_jpegs, write_shards


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: Any) -> str:
    """Every test that takes it runs on the CPU, and, marked `gpu`, on a GPU."""
    return request.param


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """103 training and 53 val samples, each with a class of its own in its split: the label says which it is."""
    return write_shards(
        tmp_path_factory.mktemp("pipeline") / "numbered",
        {
            "train": cut(texture_jpegs(1, 103), [30, 1, 25, 40, 7]),
            "val": cut(texture_jpegs(2, 53), [20, 33]),
        },
        classes=103,
    )


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write a data set that a test wants to be wrong: `make_shards(splits, classes=...)`."""
    return lambda splits, **options: write_shards(tmp_path / "made", splits, **options)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Run a cache's pass line by line: the same bits (test_loader_cache_pixels.py) without seconds of compilation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)
