"""The memory limit of a cache."""

from pathlib import Path

import pytest
import torch

from pipeline.cache import memory
from pipeline.cache.memory import available_bytes

FILES = {
    "version 2": ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    "version 1": (
        *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("version", FILES)
def test_a_container_s_limit_counts_less_what_is_used_but_for_the_page_cache(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = available_bytes(torch.device("cpu"))
    limit, usage, stat, cached = FILES[version]
    (tmp_path / "memory").mkdir()
    for name, content in ((limit, "1000000"), (usage, "400000"), (stat, f"anon 300000\n{cached} 100000\n")):
        (tmp_path / name).write_text(content)
    assert available_bytes(torch.device("cpu")) == 700_000
    (tmp_path / limit).write_text("max" if version == "version 2" else str(2**62))
    assert available_bytes(torch.device("cpu")) > whole / 2
