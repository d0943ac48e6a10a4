from pathlib import Path

import pytest

from errors import InputError
from training.cli import resolve


def test_paths_begin_in_the_project(tmp_path: Path) -> None:
    assert resolve("data", "shards", tmp_path) == str(tmp_path / "shards")
    assert resolve("data", "/data/shards", tmp_path) == "/data/shards"
    assert resolve("storage", "s3://bucket/runs", tmp_path) == "s3://bucket/runs"


def test_in_a_job_s_copy_of_the_project_a_relative_store_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "_ray_pkg_0123abcd"
    (copy / "here").mkdir(parents=True)
    for path, must_exist in (("runs", False), ("here", False), ("shards", True)):
        with pytest.raises(InputError, match=r"is '\w+': it is relative, but this job runs in a copy of the project"):
            resolve("storage", path, copy, must_exist=must_exist)
    assert resolve("data", "here", copy, must_exist=True) == str(copy / "here"), "what was uploaded can be read"
    assert resolve("storage", "/runs", copy) == "/runs"
