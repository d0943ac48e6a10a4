"""Builds that are killed at random moments or run out of space, and are continued: the same bytes, nothing mixed."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import PROJECT, complaints
from PIL import Image
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE, encoded
from shard_reading import changed_files, file_identities, folder_bytes

from preprocess.build_shards import main
from preprocess.manifest import read_index
from preprocess.run.pool import Tally

TINY = ("--short-side", TINY_SHORT_SIDE, "--shard-samples", TINY_SHARD_SAMPLES, "--max-rejected", MAX_REJECTED)
RECORDS = ".unfinished/[tv]*-*.json"


def build(source: Path, output: Path, *options: object) -> int:
    return main([str(part) for part in ("--input", source, "--output", output, *TINY, "--workers", 2, *options)])


def start(source: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "preprocess.build_shards", "--input", source, "--output", output]
    return subprocess.Popen(
        [*map(str, (*command, *TINY)), "--workers", "2"],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def duration(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, float]:
    """When an undisturbed build first writes, and when it ends, in seconds from its start."""
    output = tmp_path_factory.mktemp("timed") / "out"
    began = time.monotonic()
    process = start(raw_folder, output)
    while not output.exists():
        time.sleep(0.002)
    first = time.monotonic() - began
    assert process.wait() == 0
    return first, time.monotonic() - began


@pytest.mark.parametrize(
    "number", [0, 1, 2, *(pytest.param(number, marks=pytest.mark.slow) for number in range(3, 23))]
)
def test_killed_at_a_random_moment_and_continued(
    raw_folder: Path, tiny_shards: Path, tmp_path: Path, duration: tuple[float, float], number: int
) -> None:
    output = tmp_path / "out"
    process = start(raw_folder, output)
    time.sleep(random.Random(number).uniform(*duration))
    kill_group(process)
    assert build(raw_folder, output) == 0
    assert folder_bytes(output) == folder_bytes(tiny_shards)


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_its_end(
    raw_folder: Path, tiny_shards: Path, tmp_path: Path, duration: tuple[float, float]
) -> None:
    first, end = duration
    rng = random.Random(1)
    for _ in range(8):
        process = start(raw_folder, tmp_path / "out")
        time.sleep(rng.uniform(first, (first + end) / 2))
        kill_group(process)
    assert build(raw_folder, tmp_path / "out") == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tiny_shards)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory, as small as can be."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "twotower-test", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"mounting is not permitted: {mount.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_and_extend(
    source: Path, disk: Path, step: int, capsys: pytest.CaptureFixture[str], whole: dict[str, bytes]
) -> int:
    """Build on a disk that is too small until it has grown to be large enough; return how often it was too small."""
    failures, kept = 0, 0
    while True:
        size = (failures + 1) * step
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        code = build(source, disk / "out")
        if code == 0:
            break
        failures += 1
        (error,) = complaints(capsys.readouterr().err)
        assert code == 1
        assert error.startswith("build_shards: cannot build: ")
        assert "No space left on device; " in error
        assert not list(disk.rglob("*.partial"))
        assert not list(disk.rglob("manifest.json"))
        assert len(list((disk / "out").glob(RECORDS))) >= kept  # no room is lost
        kept = len(list((disk / "out").glob(RECORDS)))
    assert folder_bytes(disk / "out") == whole
    return failures


def test_a_disk_that_fills_up_and_is_given_room(
    raw_folder: Path, tiny_shards: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fill_and_extend(raw_folder, small_disk, 400, capsys, folder_bytes(tiny_shards)) >= 2


@pytest.mark.slow
def test_a_disk_that_is_given_room_in_twenty_steps(
    raw_folder: Path, tiny_shards: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fill_and_extend(raw_folder, small_disk, 60, capsys, folder_bytes(tiny_shards)) >= 15


def test_a_disk_that_may_only_be_read_is_no_place_for_an_output(
    raw_folder: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert build(raw_folder, small_disk) == 2
    assert capsys.readouterr().err == (
        f"build_shards: --output is {small_disk}: it cannot be written: Read-only file system; use another folder\n"
    )


@pytest.fixture(scope="module")
def left(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the state that a build leaves when its last act, the manifest, fails: everything else is there."""

    def fail(*_: object) -> None:
        raise OSError("no room")

    output = tmp_path_factory.mktemp("left") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.build.write_manifest", fail)
        assert build(raw_folder, output) == 1
    return output


@pytest.fixture
def build_state(left: Path, tmp_path: Path) -> Path:
    """A copy of it, free to be changed."""
    return Path(shutil.copytree(left, tmp_path / "out"))


def test_finished_shards_are_taken_as_they_are(
    raw_folder: Path, tiny_shards: Path, build_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_identities(build_state)
    for name in ("train-000001.tar", "val-000000.idx"):  # as a file system that lost its last writes
        os.truncate(build_state / name, 100)
    (build_state / ".unfinished" / "train-000003.npz").write_bytes(b"PK")
    (build_state / ".unfinished" / "train-000004.json").write_bytes(b"")
    assert build(raw_folder, build_state) == 0
    assert "3 rejected, 4 of 10 shards built, " in capsys.readouterr().out
    assert folder_bytes(build_state) == folder_bytes(tiny_shards)
    built = {
        f"{stem}.{end}"
        for stem in ("train-000001", "train-000003", "train-000004", "val-000000")
        for end in ("tar", "idx")
    }
    assert changed_files(build_state, before) == {*built, "mean.npy", "manifest.json"}


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--seed", 1), "seed 0, not 1"),
        (("--short-side", 32), "short side 64, not 32"),
        (("--quality", 90), "quality 95, not 90"),
        (("--shard-samples", 17), "shard samples 16, not 17"),
        (("--name", "mine"), "name tiny, not mine"),
    ],
)
def test_another_build_is_not_mixed_in(
    raw_folder: Path, build_state: Path, capsys: pytest.CaptureFixture[str], options: tuple, difference: str
) -> None:
    before = folder_bytes(build_state)
    assert build(raw_folder, build_state, *options) == 2
    assert capsys.readouterr().err == (
        f"build_shards: --output is {build_state}: it holds an unfinished build with {difference}; "
        "continue that one, use another folder, or remove it\n"
    )
    assert folder_bytes(build_state) == before


def test_another_source_is_not_mixed_in(
    raw_folder: Path, build_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folder_bytes(build_state)

    def refusal(source: Path) -> str:
        assert build(source, build_state) == 2
        return capsys.readouterr().err

    blurred = tmp_path / "blurred" / "tiny"  # the same names, other files
    shutil.copytree(raw_folder, blurred)
    for path in blurred.rglob("*_*.JPEG"):
        path.write_bytes(path.read_bytes()[:-2])
    assert "an unfinished build with other image files: train/" in refusal(blurred)
    renamed = tmp_path / "renamed" / "tiny"
    shutil.copytree(raw_folder, renamed)
    (renamed / "val" / "red-square" / "red-square_000.JPEG").rename(renamed / "val" / "red-square" / "x.JPEG")
    assert "an unfinished build with other images" in refusal(renamed)
    for split in ("train", "val"):
        (renamed / split / "red-square").rename(renamed / split / "red")
    assert "an unfinished build with other classes" in refusal(renamed)
    assert folder_bytes(build_state) == before


def test_a_file_that_was_replaced_is_built_in_anew(
    raw_folder: Path, build_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(raw_folder, tmp_path / "tiny"))  # with the times of the files
    before = file_identities(build_state)
    key = read_index(build_state / "train-000002.idx")[0].key
    (replaced,) = source.glob(f"{key}.*")
    replaced.write_bytes(encoded(Image.new("RGB", (80, 90), (9, 99, 0))))
    assert build(source, build_state) == 0
    name = replaced.relative_to(source)
    said = f"'{name}' and 0 more files have changed in size or time since their shards were finished: 1 shards are"
    assert said in capsys.readouterr().err
    assert {"train-000002.tar", "train-000002.idx"} <= changed_files(build_state, before)
    assert build(source, tmp_path / "fresh") == 0
    assert folder_bytes(build_state) == folder_bytes(tmp_path / "fresh")


def test_a_copy_of_the_source_that_keeps_the_times_is_the_same_source(
    raw_folder: Path, tiny_shards: Path, build_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(Path(shutil.copytree(raw_folder, tmp_path / "tiny")), build_state) == 0
    assert "changed" not in capsys.readouterr().err
    assert folder_bytes(build_state) == folder_bytes(tiny_shards)


def test_another_codec_is_not_mixed_in(raw_folder: Path, build_state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = build_state / ".unfinished" / "plan.json"
    page = json.loads(plan.read_text())
    plan.write_text(json.dumps({**page, "Pillow": "1.1.7"}))
    assert build(raw_folder, build_state) == 2
    assert f"Pillow 1.1.7, not {page['Pillow']}" in capsys.readouterr().err


def test_a_mended_source_is_read_again(raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(raw_folder, source)
    lonely = source / "train" / "lonely" / "1.jpg"
    for path in (lonely, source / "val" / "lonely" / "1.jpg"):
        path.parent.mkdir()
        shutil.copy(raw_folder / "val" / "red-square" / "red-square_000.JPEG", path)
    good = lonely.read_bytes()
    assert build(source, tmp_path / "whole") == 0
    lonely.write_bytes(good[:100])
    assert build(source, output, "--max-rejected", 1) == 2
    assert (
        "class 'lonely' has no readable image (1 Truncated File Read), e.g. train/lonely/1.jpg: "
        in capsys.readouterr().err
    )
    before = file_identities(output)
    lonely.write_bytes(good)
    assert build(source, output) == 0
    assert "1 of 10 shards built" in capsys.readouterr().out
    assert folder_bytes(output) == folder_bytes(tmp_path / "whole")
    assert len(changed_files(output, before)) == 4  # a tar, its index, mean.npy, manifest.json


def test_too_many_rejections_are_an_error_and_allowing_more_continues(
    raw_folder: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert build(raw_folder, output, "--max-rejected", 0.019) == 2
    (error,) = complaints(capsys.readouterr().err)
    assert error.startswith(
        "build_shards: --max-rejected is 0.019: 3 of 151 images are rejected, 1.99% (1 empty file, "
    )
    assert "train/red-square/empty.jpg: empty file" in error
    assert build(raw_folder, output, "--max-rejected", 0.02) == 0
    assert folder_bytes(output) == folder_bytes(tiny_shards)


def reject_without_end(task: object, tally: Tally) -> None:
    while True:
        tally.count(rejected="train/a/1.jpg: rotten")


@pytest.mark.timeout(300)
def test_a_rotten_source_is_given_up_as_soon_as_that_is_certain(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("preprocess.build.build_shard", reject_without_end)
    assert build(raw_folder, tmp_path / "out") == 2
    assert "use a larger value; e.g. train/a/1.jpg: rotten" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_build_killed_at_its_very_end_is_tidied_up(
    raw_folder: Path, tiny_shards: Path, build_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tiny_shards / "manifest.json", build_state)
    (build_state / ".build.lock").touch()
    (build_state / ".train-000000.tar.node-1-2.partial").touch()
    (build_state / "notes.txt").write_text("mine")
    assert build(raw_folder, build_state) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert folder_bytes(build_state) == {**folder_bytes(tiny_shards), "notes.txt": b"mine"}


@pytest.mark.slow
def test_the_embedded_sample_is_continued(sample_shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess.build_shards", "--output", str(output)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not list(output.glob(RECORDS)):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        kill_group(process)
    before = file_identities(output)
    assert main(["--output", str(output)]) == 0
    assert folder_bytes(output) == folder_bytes(sample_shards)
    assert before.keys() - changed_files(output, before)
