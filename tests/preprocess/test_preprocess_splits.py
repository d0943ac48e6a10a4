"""The splits of a data set, from folders as people have them to the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import features
from shard_reading import folder_bytes, read_json, read_samples

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
    assert lines[0].startswith("rejected: 13 empty file, 8 not an image in a known format, 1 image file is truncated")
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


def test_a_class_without_val_images_is_a_line(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(three_splits / "valid" / "green-bars")
    assert build(three_splits, tmp_path / "out") == 0
    assert capsys.readouterr().err == "build_shards: 1 of 3 classes have no val image, e.g. 'green-bars'\n"
    assert read_json(tmp_path / "out")["splits"]["val"]["samples"] == 18


@pytest.mark.parametrize("place", ["valid", ""])
def test_val_is_built_on_its_own_with_its_own_statistics(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """From the folder around the split, or from the folder of the split."""
    output = tmp_path / "out"
    assert build(three_splits, tmp_path / "all") == 0
    if not place:
        shutil.rmtree(three_splits / "train")
        shutil.rmtree(three_splits / "test")
        assert build(three_splits, output) == 2
        assert "has val, but no train split; to build the rest only, for training.evaluate" in capsys.readouterr().err
    options = ("--splits", "val", "--name", "tiny")
    assert build(three_splits / place, output, *options) == 0
    page, both = read_json(output), read_json(tmp_path / "all")
    assert {name: split["samples"] for name, split in page["splits"].items()} == {"val": 27}
    assert page["rgb"]["split"] == "val"
    assert "split" not in both["rgb"]
    assert page["rgb"]["pixels"] != both["rgb"]["pixels"]
    if not place:  # named after the same folders: the same keys, order and bytes
        assert page["splits"]["val"] == both["splits"]["val"]
    assert main(["--verify", "--deep", "--output", str(output)]) == 0
    assert build(three_splits / place, output, *options) == 0
    assert "nothing to do" in capsys.readouterr().out
    before = folder_bytes(output)
    (output / "mean.npy").unlink()
    assert build(three_splits / place, output, *options) == 0
    assert folder_bytes(output) == before


def test_a_split_that_is_not_there_is_said(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(raw_folder, tmp_path / "out", "--splits", "test") == 2
    assert capsys.readouterr().err.endswith(f"input folder {raw_folder} has train and val, but no test split\n")
    assert build(raw_folder, tmp_path / "out", "--splits", "train") == 0
    assert {name: split["samples"] for name, split in read_json(tmp_path / "out")["splits"].items()} == {
        "train": 106,
        "val": 0,
    }


def test_images_of_some_classes_get_the_labels_of_all(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ImageNet-R has 200 of 1000 classes, and ImageNet-V2 numbers in the place of names."""
    assert build(three_splits, tmp_path / "all") == 0
    classes = [entry["id"] for entry in read_json(tmp_path / "all")["classes"]]
    subset, numbered, ids = tmp_path / "in-r", tmp_path / "in-v2", tmp_path / "ids.txt"
    for label, name in enumerate(classes):
        shutil.copytree(three_splits / "valid" / name, numbered / str(label))
    for name in classes[1:]:
        shutil.copytree(three_splits / "valid" / name, subset / name)
    ids.write_text("".join(f"{name} the {name}\n" for name in classes))
    for source, known in ((subset, tmp_path / "all"), (numbered, tmp_path / "all"), (numbered, ids)):
        output = tmp_path / f"{source.name}-{known.name}"
        assert build(source, output, "--splits", "val", "--classes", known) == 0
        assert [entry["id"] for entry in read_json(output)["classes"]] == classes
        samples = list(read_samples(output, "val"))
        assert len(samples) == (18 if source == subset else 27)
        for key, _, label in samples:
            assert key.split("/")[-1].startswith(classes[int(label)])
    capsys.readouterr()
    for text, message in (
        ("b\na\n", "line 2 is 'a'; use a class id and perhaps its name on each line, sorted by id"),
        (
            "green-bars\nteapot\n",
            f"class 'red-square' of {subset} is none of its 2, of which the first is 'green-bars'",
        ),
        ("", "it is empty"),
    ):
        ids.write_text(text)
        assert build(subset, tmp_path / "x", "--splits", "val", "--classes", ids) == 2
        error = capsys.readouterr().err
        assert f"--classes is {ids}: {message}" in error
        assert error.count("\n") == 1


def test_numbers_as_class_folders_are_sorted_as_text_with_a_line(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("blue-disc", "green-bars", "red-square")):
        shutil.copytree(raw_folder / "val" / name, tmp_path / "in" / str(9 + number))
    assert build(tmp_path / "in", tmp_path / "out", "--val-fraction", 0.2) == 0
    said = "classes are sorted as text: class '10' gets label 0; --classes gives other labels"
    assert capsys.readouterr().err == f"build_shards: {said}\n"


def test_formats_that_cannot_be_read_are_said_before_the_build(
    three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "check", lambda _: False)
    for number, path in enumerate(sorted((three_splits / "train" / "green-bars").iterdir())[:9]):
        path.write_bytes(b"RIFF\x20\0\0\0WEBPVP8 " if number < 6 else b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert build(three_splits, tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0] == (
        "build_shards: 6 of 151 images that were looked at are WEBP, which Pillow is built without; "
        "run ./bootstrap.sh, which says what it needs"
    )
    assert (
        error[1] == "build_shards: 3 of 151 images that were looked at are HEIC, which is not supported; convert them"
    )
    assert " HEIC, which is not supported" in error[-1]
