"""A complete folder that was damaged: `--verify` names exactly that, and a rerun builds exactly that again."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import complaints
from PIL import Image
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE, encoded
from shard_reading import changed_files, file_identities, folder_bytes, read_json

from preprocess.build_shards import main
from preprocess.shards import index_of

TINY = ("--short-side", TINY_SHORT_SIDE, "--shard-samples", TINY_SHARD_SAMPLES, "--max-rejected", MAX_REJECTED)


def verify(folder: Path, *options: object) -> int:
    return main(["--verify", "--output", str(folder), "--workers", "2", *map(str, options)])


def rebuild(source: Path, folder: Path) -> int:
    return main([str(part) for part in ("--input", source, "--output", folder, *TINY, "--workers", 2)])


@pytest.fixture
def complete(tiny_shards: Path, tmp_path: Path) -> Path:
    """A copy of the complete data set, free to be spoiled."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "copy"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shift_second_line(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("512", "513", 1)
    path.write_text("".join(lines))


def drop_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


DAMAGES = {
    "train-000000.tar": (cut, r"has \d+ bytes, not \d+"),
    "train-000002.tar": (flip, "has another SHA-256 than the manifest says"),
    "train-000003.idx": (shift_second_line, r"line 2 is not what the tar holds: 'jpg 513 .*'"),
    "train-000004.idx": (drop_last_line, r"has 15 lines, not 16"),
    "val-000000.tar": (Path.unlink, "is missing"),
    "val-000001.idx": (Path.unlink, "is missing"),
    "val-000002.idx": (lambda path: path.write_bytes(b"\xff\x00"), "cannot be read: .*"),
}


def test_a_whole_folder_is_whole(tiny_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file_identities(tiny_shards)
    for options in ((), ("--deep",)):
        assert verify(tiny_shards, *options) == 0
        out, err = capsys.readouterr()
        assert (out, complaints(err)) == (f"tiny: 148 samples in 10 shards, intact: {tiny_shards}\n", [])
    assert file_identities(tiny_shards) == before


def test_what_is_damaged_is_named_and_built_again(
    complete: Path, tiny_shards: Path, raw_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (damage, _) in DAMAGES.items():
        damage(complete / name)
    assert verify(complete, "--deep") == 1
    out, err = capsys.readouterr()
    assert "broken files: 7; the command that built it repairs them" in out
    said = dict(line.removeprefix(f"build_shards: {complete}/").split(" ", 1) for line in complaints(err))
    assert said.keys() == DAMAGES.keys()
    for name, (_, problem) in DAMAGES.items():
        assert re.fullmatch(problem, said[name]), said[name]
    before = file_identities(complete)
    assert rebuild(raw_folder, complete) == 0
    assert "7 of 10 shards built" in capsys.readouterr().out
    assert folder_bytes(complete) == folder_bytes(tiny_shards)
    stems = {Path(name).stem for name in DAMAGES}
    assert changed_files(complete, before) == {f"{stem}.{ending}" for stem in stems for ending in ("tar", "idx")}


def overwrite_header(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"\xff\xff" + data[10:])


@pytest.mark.parametrize("damage", [cut, flip, overwrite_header])
def test_without_its_mean_image_all_is_built_again(
    complete: Path, tiny_shards: Path, raw_folder: Path, capsys: pytest.CaptureFixture[str], damage: Callable
) -> None:
    damage(complete / "mean.npy")
    assert verify(complete) == 1
    out, err = capsys.readouterr()
    assert complaints(err) == [f"build_shards: {complete / 'mean.npy'} has another SHA-256 than the manifest says"]
    assert "broken files: 1; the command that built it repairs them" in out
    assert rebuild(raw_folder, complete) == 0
    assert folder_bytes(complete) == folder_bytes(tiny_shards)


def test_a_mean_image_of_a_manifest_without_its_digest_is_read(complete: Path, capsys: pytest.CaptureFixture) -> None:
    page = read_json(complete)
    del page["rgb"]["mean_image_sha256"]
    (complete / "manifest.json").write_text(json.dumps(page))
    assert verify(complete) == 0
    overwrite_header(complete / "mean.npy")
    assert verify(complete) == 1
    assert f"{complete / 'mean.npy'} cannot be read: " in capsys.readouterr().err


def test_what_a_rerun_cannot_mend_is_not_said_to_be_mended_by_it(
    complete: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = read_json(complete)
    page["splits"]["train"]["samples"] += 1
    (complete / "manifest.json").write_text(json.dumps(page))
    assert verify(complete) == 1
    assert f"the manifest is wrong, which no rerun repairs; remove {complete}" in capsys.readouterr().out


def set_path(page: dict, path: str, value: object) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        page = page[part]
    page[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "splits.train.shards.0.bytes",
            "many",
            "splits.train.shards.0.bytes is 'many': Input should be a valid integer",
        ),
        ("splits.train.samples", -1, "splits.train.samples is '-1': Input should be greater than or equal to 0"),
        ("splits", [], "splits is '[]': Input should be an object"),
        ("classes.0.id", None, "classes.0.id is 'None': Input should be a valid string"),
        ("rgb.mean", [1.0, 2.0], "rgb is not of three channels"),
        ("rgb.mean_image", "../mean.npy", "'../mean.npy' is not the name of a file in the folder"),
        ("short_side", 0, "short_side is '0': Input should be greater than or equal to 1"),
        ("rejected.0.extra", 1, "rejected.0.extra is unknown"),
    ],
)
def test_a_manifest_of_wrong_types_is_one_line(
    complete: Path, capsys: pytest.CaptureFixture[str], path: str, value: object, said: str
) -> None:
    page = read_json(complete)
    set_path(page, path, value)
    (complete / "manifest.json").write_text(json.dumps(page))
    assert verify(complete) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"build_shards: {complete / 'manifest.json'} is not valid: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("lost", ["train-000001.tar", "mean.npy"])
def test_a_source_that_has_changed_is_not_mixed_in(
    complete: Path, raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    changed = tmp_path / "tiny"
    shutil.copytree(raw_folder, changed)
    for path in changed.rglob("*_*.JPEG"):
        path.write_bytes(encoded(Image.new("RGB", (80, 90), (9, 99, 0))))
    (complete / lost).unlink()
    before = folder_bytes(complete)
    assert rebuild(changed, complete) == 2
    err = capsys.readouterr().err
    assert re.search(r"train-\d+\.tar is built with different bytes than in the manifest: the source or", err)
    assert {name: data for name, data in folder_bytes(complete).items() if ".unfinished" not in name} == before


def edit_tar(folder: Path, tar_name: str, edit: Callable[[str, bytes], bytes]) -> None:
    """Change the files in a tar, and whatever knows its size and digest: what is left to find is in the files."""
    path = folder / tar_name
    with tarfile.open(path) as tar:
        files = [(member, edit(member.name, tar.extractfile(member).read())) for member in tar.getmembers()]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in files:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    page, data = read_json(folder), path.read_bytes()
    for shard in (shard for split in page["splits"].values() for shard in split["shards"] if shard["tar"] == tar_name):
        shard.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(page))
    path.with_suffix(".idx").write_text(index_of(path))


SMALL = encoded(Image.new("RGB", (70, 63)))
GREY = encoded(Image.new("L", (70, 64)))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda name, data: data[:-300] if name.endswith("jpg") else data, "does not decode: "),
        (
            lambda name, data: SMALL if "_003." in name and name.endswith("jpg") else data,
            "is RGB of 70x63 pixels, not RGB with a short side of 64",
        ),
        (lambda name, data: GREY if name.endswith("jpg") else data, "is L of 70x64 pixels, "),
        (
            lambda name, data: b"3" if name.endswith("cls") else data,
            "label '3' is not one of 3 classes in 1 digits (and ",
        ),
        (lambda name, data: b"02" if name.endswith("cls") else data, "label '02' is not one of 3 classes"),
    ],
)
def test_deep_finds_what_is_wrong_inside_the_samples(
    complete: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[str, bytes], bytes], problem: str
) -> None:
    edit_tar(complete, "train-000001.tar", edit)
    assert verify(complete) == 0
    capsys.readouterr()
    assert verify(complete, "--deep") == 1
    (error,) = complaints(capsys.readouterr().err)
    assert error.startswith(f"build_shards: {complete / 'train-000001.tar'} sample train/")
    assert problem in error


def test_sample_counts_that_do_not_add_up_are_named(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = read_json(complete)
    page["splits"]["val"]["shards"][0]["samples"] -= 1
    (complete / "manifest.json").write_text(json.dumps(page))
    assert verify(complete) == 1
    err = capsys.readouterr().err
    assert "manifest.json says 42 samples for val, its shards have 41" in err
    assert "val-000000.tar holds 14 samples, not 13" in err


def test_without_a_data_set_there_is_nothing_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path / "nowhere") == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert verify(tmp_path) == 2
    assert "has no manifest.json" in capsys.readouterr().err
