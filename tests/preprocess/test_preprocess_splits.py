"""The splits of a data set, from folders as people have them to the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shard_reading import read_json, read_samples

from preprocess.build_shards import main
from preprocess.manifest import read_manifest

OPTIONS = ("--short-side", "16", "--max-rejected", "0.05", "--shard-samples", "20", "--workers", "1")


def build(source: Path, output: Path, *options: object) -> int:
    return main([str(part) for part in ("--input", source, "--output", output, *OPTIONS, *options)])


@pytest.fixture
def three_splits(raw_folder: Path, tmp_path: Path) -> Path:
    """Return a folder with `train`, `valid` and `test`: test has other images than valid."""
    root = tmp_path / "in" / "tiny"
    shutil.copytree(raw_folder / "train", root / "train")
    for name in sorted(path.name for path in (raw_folder / "val").iterdir()):
        for number, path in enumerate(sorted((raw_folder / "val" / name).iterdir())):
            target = root / ("test" if number < 5 else "valid") / name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return root


def test_a_test_folder_becomes_a_split_of_its_own(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert build(three_splits, output) == 0
    printed = capsys.readouterr()
    assert "106 train + 27 val + 15 test samples" in printed.out
    assert printed.err == ""
    splits = read_json(output)["splits"]
    assert {name: split["samples"] for name, split in splits.items()} == {"train": 106, "val": 27, "test": 15}
    assert [shard["tar"] for shard in splits["test"]["shards"]] == ["test-000000.tar"]
    keys = {split: {key for key, _, _ in read_samples(output, split)} for split in splits}
    assert {key.split("/")[0] for key in keys["val"]} == {"valid"}
    assert {key.split("/")[0] for key in keys["test"]} == {"test"}
    assert main(["--verify", "--deep", "--output", str(output)]) == 0
    (output / "test-000000.tar").write_bytes(b"")
    assert build(three_splits, output) == 0
    assert read_manifest(output).split("test").samples == 15


def test_the_statistics_are_those_of_train_only(three_splits: Path, tmp_path: Path) -> None:
    assert build(three_splits, tmp_path / "all") == 0
    shutil.rmtree(three_splits / "test")
    assert build(three_splits, tmp_path / "two") == 0
    both, two = read_json(tmp_path / "all"), read_json(tmp_path / "two")
    assert both["rgb"] == two["rgb"]
    assert both["splits"].pop("test")
    assert both["splits"] == two["splits"]


def test_the_folder_above_a_data_set_is_refused_whatever_the_options(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(three_splits.parent, tmp_path / "out", "--val-fraction", 0.1) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith(f"has a single class folder, 'tiny'; use {three_splits} as --input\n")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images_are_counted_by_ending(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most images of a download may be `.jfif`; the build takes them, and says what it leaves out."""
    for path in (three_splits / "train" / "green-bars").glob("*.JPEG"):
        path.rename(path.with_suffix(".jfif"))
    for number in range(12):
        (three_splits / "valid" / "green-bars" / f"box_{number}.xml").write_text("<annotation>")
    (three_splits / "train" / "green-bars" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert build(three_splits, tmp_path / "out") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == "skipped, not images: 12 .xml, 1 .DS_Store, 1 .txt"
    assert "106 train + 27 val" in printed[-1]
    assert read_json(tmp_path / "out")["skipped"] == {".DS_Store": 1, ".txt": 1, ".xml": 12}
    assert read_manifest(tmp_path / "out").skipped == {".DS_Store": 1, ".txt": 1, ".xml": 12}


def test_every_rejection_and_skipped_file_counts_in_the_error(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(sorted((three_splits / "train" / "green-bars").iterdir())[:19]):
        path.write_bytes(b"" if number < 12 else b"<html>")
    assert build(three_splits, tmp_path / "out", "--max-rejected", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "rejected: 13 empty file, 8 not an image in a known format, 1 image file is truncated (N "
    )
    shutil.rmtree(tmp_path / "out")
    assert build(three_splits, tmp_path / "out", "--max-rejected", 0.14) == 2
    error = capsys.readouterr().err
    assert "--max-rejected is 0.14: 22 of 151 images are rejected, 14.57% (13 empty file, 8 not an image in a" in error
    assert "; not images: 1 .txt; repair the source" in error
    assert error.count("\n") == 1


def test_classes_of_one_image_and_a_val_split_without_images_are_named(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    shutil.copytree(raw_folder / "val", source)
    for path in sorted((source / "green-bars").iterdir())[1:]:
        path.unlink()
    assert build(source, tmp_path / "one", "--val-fraction", 0.1) == 0
    assert capsys.readouterr().err.splitlines() == [
        "build_shards: 1 of 3 classes have a single train image, e.g. 'green-bars'",
        "build_shards: 1 of 3 classes have no val image, e.g. 'green-bars'",
    ]
    assert build(source, tmp_path / "none", "--val-fraction", 0) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "build_shards: the val split has no image: no training can be validated on it",
    ]
