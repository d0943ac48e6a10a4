"""Data that tests of every part share: a folder of raw images, and shards made from it by the real command.

Nothing here imports torch, Ray or DALI: a test of one part does not pay for the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run_command
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE, write_raw_folder
from s3_server import CREDENTIALS, FaultyStore, proxy, s3_server


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of drawn images: 106 train (3 classes, 4 of them odd formats), 42 val, and 3 broken files."""
    folder = tmp_path_factory.mktemp("raw") / "tiny"
    write_raw_folder(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set by the real command: `tiny`, short side 64, 106 train and 42 val samples in shards of at most 16."""
    folder = tmp_path_factory.mktemp("shards") / "tiny"
    build = run_command(
        *("preprocess.build_shards", "--input", raw_folder, "--output", folder),
        *("--short-side", TINY_SHORT_SIDE, "--shard-samples", TINY_SHARD_SAMPLES, "--workers", 2),
        *("--max-rejected", MAX_REJECTED),
    )
    assert build.returncode == 0, build.stderr
    return folder


@pytest.fixture(scope="session")
def sample_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample as the demo builds it, by the real command without `--input`."""
    folder = tmp_path_factory.mktemp("shards") / "sample"
    build = run_command("preprocess.build_shards", "--output", folder)
    assert build.returncode == 0, build.stderr
    return folder


@pytest.fixture(scope="session")
def four_classes(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a class count that two and four devices can share, and 55 val samples, which they cannot."""
    raw = tmp_path_factory.mktemp("raw") / "four"
    for split in ("train", "val"):
        for name in ("blue-disc", "green-bars", "red-square"):
            shutil.copytree(raw_folder / split / name, raw / split / name)
        shutil.copytree(raw_folder / split / "blue-disc", raw / split / "more-discs")
    for name in ("blue-disc_000.JPEG", "page.jpg"):
        (raw / "val" / "more-discs" / name).unlink()
    shards = tmp_path_factory.mktemp("shards") / "four"
    build = run_command(
        *("preprocess.build_shards", "--input", raw, "--output", shards, "--short-side", 64),
        *("--max-rejected", MAX_REJECTED),
    )
    assert build.returncode == 0, build.stderr
    return shards


@pytest.fixture(scope="session")
def s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real S3 server of this machine, with an empty bucket."""
    pytest.importorskip("moto", reason="the S3 server of the tests is of the packages moto[s3] and flask-cors")
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """That server behind a proxy that can do wrong; this process and those that it starts use it."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with proxy(s3_address) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store
