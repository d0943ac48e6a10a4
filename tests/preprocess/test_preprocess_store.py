"""Builds into an object store: the bytes of a local build, the manifest last, continued after a kill, verified."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import PROJECT
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE
from s3_server import BUCKET, FaultyStore, refuse, slow

import object_store
from object_store import StoreFolder
from preprocess.build_shards import main
from preprocess.manifest import read_manifest

TINY = ("--name", "tiny", "--short-side", TINY_SHORT_SIDE, "--shard-samples", TINY_SHARD_SAMPLES)


@pytest.fixture
def build(raw_folder: Path, tmp_path: Path) -> Callable[..., int]:
    def build(uri: str, *options: object) -> int:
        common = ("--input", raw_folder, "--max-rejected", MAX_REJECTED, "--workers", 2)
        where = ("--output", uri, "--staging", tmp_path / "staging")
        return main([str(part) for part in (*common, *TINY, *where, *options)])

    return build


def stored(uri: str) -> dict[str, bytes | None]:
    folder = StoreFolder(uri)
    return {name: folder.read(name) for name in folder.sizes()}


def local(folder: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_are_those_of_a_local_build_and_the_manifest_is_last(
    build: Callable[..., int], tiny_shards: Path, s3: FaultyStore, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri = f"s3://{BUCKET}/built"
    assert build(uri) == 0
    assert stored(uri) == local(tiny_shards)
    files = [path for method, path in s3.requests if method == "POST" and "uploadId" in path]
    assert "manifest.json" in files[-1]
    assert read_manifest(uri) == read_manifest(tiny_shards)
    assert f"files uploaded from {tmp_path / 'staging'}, which may now be removed" in capsys.readouterr().out
    before = len(s3.requests)
    assert build(uri) == 0
    assert capsys.readouterr().out == f"{uri} is complete (tiny): nothing to do\n"
    assert {method for method, _ in s3.requests[before:]} <= {"GET", "HEAD"}
    assert main(["--output", uri, "--verify", "--deep", "--workers", "2"]) == 0
    assert capsys.readouterr().out == f"tiny: 148 samples in 10 shards, intact: {uri}\n"
    assert build(uri, "--seed", 1) == 2
    assert f"--output is {uri}: it is a complete data set with seed 0, not 1" in capsys.readouterr().err


def test_what_is_damaged_in_the_store_is_named(
    build: Callable[..., int], s3: FaultyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"s3://{BUCKET}/damaged"
    assert build(uri) == 0
    folder = StoreFolder(uri)
    tar = folder.read("train-000001.tar")
    assert tar is not None
    folder.write("train-000001.tar", tar[:700] + b"?" + tar[701:])
    folder.delete("val-000000.idx")
    capsys.readouterr()
    assert main(["--output", uri, "--verify", "--workers", "2"]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"build_shards: {uri}/train-000001.tar has another SHA-256 than the manifest says",
        f"build_shards: {uri}/val-000000.idx is missing",
    ]
    assert "broken files: 2" in out


@pytest.mark.slow
def test_an_upload_that_was_killed_goes_on(
    build: Callable[..., int], raw_folder: Path, tiny_shards: Path, s3: FaultyStore, tmp_path: Path
) -> None:
    uri = f"s3://{BUCKET}/killed"
    for method in ("PUT", "POST"):
        s3.fault(slow(2), "train-000005.tar", method)
    command = ("preprocess.build_shards", "--input", raw_folder, "--max-rejected", MAX_REJECTED, *TINY)
    where = ("--output", uri, "--staging", tmp_path / "staging")
    killed = subprocess.Popen(
        [sys.executable, "-m", *map(str, (*command, *where))], cwd=PROJECT, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not any(path.partition("?")[0].endswith("train-000005.tar") for _, path in s3.requests):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(30)
    assert "manifest.json" not in StoreFolder(uri).sizes(), "it is not taken for a data set"
    s3.faults.clear()
    done = set(StoreFolder(uri).sizes())
    s3.requests.clear()
    assert build(uri) == 0
    assert stored(uri) == local(tiny_shards)
    again = {path.partition("?")[0].rpartition("/")[2] for method, path in s3.requests if method in ("PUT", "POST")}
    assert not again & (done - {".upload"}), "what was complete is not sent again"


@pytest.mark.slow
def test_the_rest_of_another_upload_is_replaced(
    build: Callable[..., int], tiny_shards: Path, s3: FaultyStore, tmp_path: Path
) -> None:
    uri = f"s3://{BUCKET}/other"
    assert build(uri, "--seed", 7) == 0
    StoreFolder(uri).delete("manifest.json")  # as if it had been killed before its last file
    shutil.rmtree(tmp_path / "staging")
    assert build(uri) == 0
    assert {name: stored(uri)[name] for name in local(tiny_shards)} == local(tiny_shards)


def test_a_store_that_refuses_is_one_line_before_anything_is_built(
    build: Callable[..., int],
    s3: FaultyStore,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert build("s3://missing/built") == 2
    assert capsys.readouterr().err.startswith(
        "build_shards: s3://missing/built cannot be listed: there is no such bucket; use one that exists"
    )
    assert not (tmp_path / "staging").exists()
    monkeypatch.setattr(object_store, "BACK_OFF_SECONDS", ())
    for method in ("PUT", "POST"):
        s3.fault(refuse(403, "AccessDenied"), "val-000002.tar", method)
    uri = f"s3://{BUCKET}/refused"
    assert build(uri) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"build_shards: {uri} cannot be written: the store refuses these credentials (ACCESS_DENIED)")
    )
    assert "manifest.json" not in StoreFolder(uri).sizes()
    assert main(["--output", str(tmp_path / "folder"), "--staging", str(tmp_path)]) == 2
    assert "--staging is" in capsys.readouterr().err
