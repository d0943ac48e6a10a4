"""Input that the build refuses, and names and paths that are hard to write down."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROJECT, run_command
from PIL import Image
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE
from shard_reading import read_samples

from preprocess.build_shards import main

TINY = ("--short-side", TINY_SHORT_SIDE, "--shard-samples", TINY_SHARD_SAMPLES, "--max-rejected", MAX_REJECTED)


def build(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_class_without_a_readable_image_is_an_error(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    shutil.copytree(raw_folder, source)
    for path in (source / "train" / "green-bars").iterdir():
        path.write_bytes(b"")
    arguments = ("--input", source, "--output", tmp_path / "out", *TINY, "--workers", 2, "--max-rejected", 1)
    assert build(*arguments) == 2
    error = capsys.readouterr().err
    assert (
        "class 'green-bars' has no readable image (34 empty file), e.g. train/green-bars/green-bars_000.JPEG: emp"
        in error
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_names_that_are_hard_to_write_down(tmp_path: Path) -> None:
    source = tmp_path / "höhere\nArt"
    picture = Image.new("RGB", (20, 30), (1, 2, 3))
    for split, name in itertools.product(("train", "val"), ("größer als", "b.c")):
        (source / split / name).mkdir(parents=True)
        picture.save(source / split / name / "x y.jpg")
        (source / split / name / "gone\udcff.jpg").symlink_to("nowhere")
    assert build("--input", source, "--output", tmp_path / "out", "--short-side", 8, "--max-rejected", 0.5) == 0
    page = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert page["name"] == "höhere\nArt"
    assert [entry["id"] for entry in page["classes"]] == ["b.c", "größer als"]
    assert {entry["source"] for entry in page["rejected"]} == {
        f"{split}/{name}/gone\\xff.jpg" for split in ("train", "val") for name in ("größer als", "b.c")
    }
    keys = {key for key, _, _ in read_samples(tmp_path / "out", "train")}
    assert keys == {"train/gr%C3%B6%C3%9Fer%20als/x%20y", "train/b%2Ec/x%20y"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--short-side", 0), "--short-side is 0: it is out of range; use 1 to 4000"),
        (("--quality", 101), "--quality is 101: it is out of range; use 1 to 100"),
        (("--workers", 0), "--workers is 0; use a whole number from 1"),
        (("--shard-samples", -3), "--shard-samples is -3; use a whole number from 1"),
        (("--val-fraction", 1), "--val-fraction is 1.0: it is out of range; use at least 0 and below 1"),
        (("--val-fraction", "nan"), "--val-fraction is nan: it is out of range; use at least 0 and below 1"),
        (("--max-rejected", 1.5), "--max-rejected is 1.5: it is out of range; use 0 to 1"),
        (("--deep",), "--deep needs --verify; add it"),
        (("--name", " "), "--name is empty; leave it out for the input folder's"),
        (("--input", "nowhere"), "input folder nowhere does not exist"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple, message: str
) -> None:
    assert build("--input", raw_folder, "--output", tmp_path / "out", *options) == 2
    assert capsys.readouterr().err == f"build_shards: {message}\n"
    assert not (tmp_path / "out").exists()


def test_output_inside_the_input_or_on_a_file_is_refused(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("--input", raw_folder, "--output", raw_folder / "shards") == 2
    assert "lies in the input folder" in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"")
    assert build("--input", raw_folder, "--output", tmp_path / "file") == 2
    assert "file: it is not a folder; use another" in capsys.readouterr().err
    assert build("--input", raw_folder, "--output", tmp_path / "file" / "out") == 2
    assert "file/out: it cannot be used: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["--input", "--output"])
def test_a_path_that_cannot_be_looked_at_is_one_line(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    paths = {"--input": raw_folder, "--output": tmp_path / "out"}
    for path, said in ((loop, "Too many levels of symbolic links"), (tmp_path / ("n" * 300), "File name too long")):
        assert build(*(part for pair in {**paths, what: path}.items() for part in pair)) == 2
        err = capsys.readouterr().err
        assert said in err
        assert str(path) in err
        assert err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may look at everything")
def test_a_folder_that_may_not_be_looked_at_is_one_line(raw_folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    nobody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    for options in (("--input", raw_folder, "--output", closed / "out"), ("--input", closed / "in"), ("--verify",)):
        options = options if options != ("--verify",) else ("--verify", "--output", closed)
        command = [*nobody, sys.executable, "-m", "preprocess.build_shards", *map(str, options)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert str(closed) in done.stderr


def test_the_command_as_typed(raw_folder: Path, tmp_path: Path) -> None:
    options = ("--input", raw_folder, "--output", tmp_path / "out", "--short-side", 16, "--max-rejected", MAX_REJECTED)
    done = run_command("preprocess.build_shards", *options)
    assert (done.returncode, done.stderr) == (0, "")  # quiet where nobody watches
    summary = (
        r"rejected: 1 empty file, 1 image file is truncated, 1 not an image in a known format\n"
        r"skipped, not images: 1 \.txt\n"
        r"tiny: 106 train \+ 42 val samples of 3 classes, 3 rejected, \d+\.\d s, \d+ images/s, \d+\.\d MB/s: (.*)\n"
    )
    assert re.fullmatch(summary, done.stdout)[1] == str(tmp_path / "out")
    missing = run_command("preprocess.build_shards", "--input", tmp_path / "nowhere", "--output", tmp_path / "new")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"build_shards: input folder {tmp_path / 'nowhere'} does not exist\n"
    unknown = run_command("preprocess.build_shards", "--short-sid", 16)
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr
    assert run_command("preprocess.build_shards", "--help").returncode == 0


def test_a_name_that_the_terminal_cannot_show_is_escaped(raw_folder: Path, tmp_path: Path) -> None:
    done = run_command(
        *("preprocess.build_shards", "--input", raw_folder, "--output", tmp_path / "out", "--name", "日本"),
        *("--short-side", TINY_SHORT_SIDE, "--max-rejected", MAX_REJECTED),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("\\u65e5\\u672c: ")
