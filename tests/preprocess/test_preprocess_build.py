"""The folder that a build leaves: its contract, read with other tools, and its independence of how it was made."""

import hashlib
import io
import itertools
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from raw_data import MAX_REJECTED, RAW_CLASSES, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE
from shard_reading import folder_bytes, read_json, read_samples
from wds2idx import IndexCreator

from preprocess.build_shards import main
from preprocess.images.transform import UnreadableImage, decode_rgb, resize_short_side

TINY = ("--short-side", TINY_SHORT_SIDE, "--shard-samples", TINY_SHARD_SAMPLES, "--max-rejected", MAX_REJECTED)
REJECTED = {
    ("train", "train/red-square/empty.jpg", "empty file"),
    ("train", "train/red-square/truncated.jpg", "image file is truncated (4 bytes not processed)"),
    ("val", "val/blue-disc/page.jpg", "not an image in a known format"),
}


def build(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def source_of(raw_folder: Path, key: str) -> Path:
    """Return the one raw file that a key leads back to."""
    stem = raw_folder / unquote(key)
    (found,) = [path for path in stem.parent.iterdir() if path.stem == stem.name]
    return found


def test_the_manifest_has_the_fields_of_the_contract(tiny_shards: Path) -> None:
    page = read_json(tiny_shards)
    assert list(page) == [
        *("schema", "name", "short_side", "jpeg_quality", "chroma", "resample", "seed"),
        *("classes", "splits", "rgb", "rejected", "apply_exif", "skipped"),
    ]
    constants = {key: page[key] for key in list(page)[:7]}
    assert constants == {
        **{"schema": 1, "name": "tiny", "short_side": 64, "jpeg_quality": 95},
        **{"chroma": "4:2:0", "resample": "bicubic", "seed": 0},
    }
    assert page["classes"] == [{"id": name, "name": name} for name in RAW_CLASSES]
    assert {split: page["splits"][split]["samples"] for split in page["splits"]} == {"train": 106, "val": 42}
    assert list(page["rgb"]) == [
        *("pixels", "mean", "covariance", "eigenvalues", "eigenvectors", "mean_image", "mean_image_sha256"),
    ]
    assert page["rgb"]["mean_image_sha256"] == hashlib.sha256((tiny_shards / "mean.npy").read_bytes()).hexdigest()
    assert {(entry["split"], entry["source"], entry["reason"]) for entry in page["rejected"]} == REJECTED


def test_the_folder_holds_what_the_manifest_says_and_nothing_else(tiny_shards: Path, tmp_path: Path) -> None:
    page = read_json(tiny_shards)
    expected = {"manifest.json", "mean.npy"}
    for name, split in page["splits"].items():
        for number, shard in enumerate(split["shards"]):
            assert (shard["tar"], shard["index"]) == (f"{name}-{number:06d}.tar", f"{name}-{number:06d}.idx")
            data = (tiny_shards / shard["tar"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
            with IndexCreator(str(tiny_shards / shard["tar"]), str(tmp_path / "idx"), verbose=False) as creator:
                creator.create_index()
            index = (tiny_shards / shard["index"]).read_text()
            assert index == (tmp_path / "idx").read_text()
            assert index.splitlines()[0] == f"v1.2 {shard['samples']}"
            expected |= {shard["tar"], shard["index"]}
        assert split["samples"] == sum(shard["samples"] for shard in split["shards"])
    assert {path.name for path in tiny_shards.iterdir()} == expected


def test_every_sample_is_its_source_resized(tiny_shards: Path, raw_folder: Path) -> None:
    keys = []
    for split in ("train", "val"):
        for key, jpeg, label in read_samples(tiny_shards, split):
            keys.append(key)
            source = source_of(raw_folder, key)
            assert source.relative_to(raw_folder).parts[:2] == (split, RAW_CLASSES[int(label)])
            assert len(label) == 1
            with Image.open(io.BytesIO(jpeg)) as sample, Image.open(source) as raw:
                assert (sample.format, sample.mode, min(sample.size)) == ("JPEG", "RGB", TINY_SHORT_SIDE)
                assert not sample.getexif()
                reference = raw.convert("RGB").resize(sample.size, Image.Resampling.BICUBIC)
                assert sample.width / sample.height == pytest.approx(raw.width / raw.height, rel=1 / 64)
                difference = np.asarray(sample, np.int16) - np.asarray(reference, np.int16)
            assert np.abs(difference).mean() < 8, source  # the loss of JPEG with 4:2:0 on hard edges
    assert len(keys) == len(set(keys)) == 148
    assert not any("." in key for key in keys)
    odd = {"cmyk", "grey", "turned", "really%20a%20png"}
    assert {f"train/red-square/{name}" for name in odd} <= set(keys)


def test_classes_are_mixed_in_every_shard_and_sizes_are_even(tiny_shards: Path) -> None:
    page = read_json(tiny_shards)
    labels = [int(label) for _, _, label in read_samples(tiny_shards, "train")]
    runs = [len(list(group)) for _, group in itertools.groupby(labels)]
    assert max(runs) < 12
    sizes = [shard["samples"] for shard in page["splits"]["train"]["shards"]]
    for size in sizes:
        part, labels = labels[:size], labels[size:]
        assert set(part) == {0, 1, 2}
    # Planned sizes differ by one at most; the train split's two broken files may lie in one shard.
    assert len(sizes) == -(-108 // TINY_SHARD_SAMPLES)
    assert max(sizes) <= TINY_SHARD_SAMPLES
    assert max(sizes) - min(sizes) <= 3


def test_webdataset_reads_images_and_int_labels(tiny_shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for split, samples in (("train", 106), ("val", 42)):
        shards = read_json(tiny_shards)["splits"][split]["shards"]
        urls = [str(tiny_shards / shard["tar"]) for shard in shards]
        data = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
        read = list(data)
        assert len(read) == samples
        assert all(isinstance(image, Image.Image) and type(label) is int for image, label in read)
        expected = [int(label) for _, _, label in read_samples(tiny_shards, split)]
        assert [label for _, label in read] == expected


def test_statistics_are_numpys_over_the_resized_pixels_of_train(tiny_shards: Path, raw_folder: Path) -> None:
    pixels, squares = [], []
    for path in sorted((raw_folder / "train").rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        try:
            image = np.asarray(resize_short_side(decode_rgb(path.read_bytes()), TINY_SHORT_SIDE), np.float64)
        except UnreadableImage:
            continue
        top, left = (round((length - TINY_SHORT_SIDE) / 2) for length in image.shape[:2])
        squares.append(image[top : top + TINY_SHORT_SIDE, left : left + TINY_SHORT_SIDE])
        pixels.append(image.reshape(-1, 3))
    stacked = np.concatenate(pixels)
    rgb = read_json(tiny_shards)["rgb"]
    assert rgb["pixels"] == len(stacked)
    assert rgb["mean"] == pytest.approx(stacked.mean(axis=0), rel=1e-12)
    np.testing.assert_allclose(rgb["covariance"], np.cov(stacked.T, bias=True), rtol=1e-9)
    values, vectors = np.linalg.eigh(np.cov(stacked.T))
    assert rgb["eigenvalues"] == pytest.approx(values[::-1], rel=1e-4)
    cosines = np.abs((np.array(rgb["eigenvectors"]) * vectors[:, ::-1]).sum(axis=0))
    np.testing.assert_allclose(cosines, 1, atol=1e-8)
    mean_image = np.load(tiny_shards / rgb["mean_image"])
    assert (mean_image.shape, mean_image.dtype) == ((64, 64, 3), np.float32)
    np.testing.assert_allclose(mean_image, np.mean(squares, axis=0), rtol=1e-6)


def test_workers_and_places_do_not_show_in_the_bytes(tiny_shards: Path, raw_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(raw_folder, moved)
    assert build("--input", moved, "--output", tmp_path / "out", *TINY, "--workers", 1) == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tiny_shards)
    assert b"elsewhere" not in (tmp_path / "out" / "manifest.json").read_bytes()


def test_options_show_in_the_bytes(tiny_shards: Path, raw_folder: Path, tmp_path: Path) -> None:
    options = ("--short-side", 32, "--quality", 60, "--seed", 5, "--name", "other", "--shard-samples", 60)
    assert build("--input", raw_folder, "--output", tmp_path / "out", *TINY, *options, "--workers", 2) == 0
    page = read_json(tmp_path / "out")
    named = [page[key] for key in ("name", "short_side", "jpeg_quality", "seed")]
    assert named == ["other", 32, 60, 5]
    assert len(page["splits"]["train"]["shards"]) == 2
    keys = [[key for key, _, _ in read_samples(folder, "train")] for folder in (tiny_shards, tmp_path / "out")]
    assert sorted(keys[0]) == sorted(keys[1])
    assert keys[0] != keys[1]  # another seed, another order
    _, jpeg, _ = next(read_samples(tmp_path / "out", "train"))
    with Image.open(io.BytesIO(jpeg)) as sample:
        assert min(sample.size) == 32


def test_exif_is_applied_to_all_samples_and_recorded(tiny_shards: Path, raw_folder: Path, tmp_path: Path) -> None:
    assert build("--input", raw_folder, "--output", tmp_path / "out", *TINY, "--apply-exif", "--workers", 2) == 0
    flags = [read_json(folder)["apply_exif"] for folder in (tiny_shards, tmp_path / "out")]
    assert flags == [False, True]
    folders = (tiny_shards, tmp_path / "out")
    plain, turned = ({key: jpeg for key, jpeg, _ in read_samples(folder, "train")} for folder in folders)
    assert [key for key in plain if plain[key] != turned[key]] == ["train/red-square/turned"]
    sizes = []
    for jpegs in (plain, turned):
        with Image.open(io.BytesIO(jpegs["train/red-square/turned"])) as sample:
            sizes.append(sample.size)
    assert sizes[0] == sizes[1][::-1]


def test_class_folders_without_a_val_split(raw_folder: Path, tmp_path: Path) -> None:
    options = ("--val-fraction", 0.25, "--short-side", 16, "--workers", 2, "--max-rejected", 0.03)
    assert build("--input", raw_folder / "val", "--output", tmp_path / "out", *options) == 0
    page = read_json(tmp_path / "out")
    assert page["name"] == "val"
    assert sum(split["samples"] for split in page["splits"].values()) == 42
    assert page["splits"]["val"]["samples"] in (11, 12)  # 4 + 4 + 4, one of them perhaps the broken one
    assert [len(split["shards"]) for split in page["splits"].values()] == [1, 1]


def test_a_split_without_images_has_no_shards(raw_folder: Path, tmp_path: Path) -> None:
    options = ("--val-fraction", 0, "--short-side", 16, "--workers", 2, "--max-rejected", 0.03)
    assert build("--input", raw_folder / "val", "--output", tmp_path / "out", *options) == 0
    assert read_json(tmp_path / "out")["splits"]["val"] == {"samples": 0, "shards": []}


@pytest.fixture
def complete(tiny_shards: Path, tmp_path: Path) -> Path:
    """A copy of the complete data set, free to be spoiled."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "copy"))


def test_over_a_complete_folder_there_is_nothing_to_do(
    complete: Path, raw_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in complete.iterdir()}
    assert build("--input", raw_folder, "--output", complete, *TINY, "--workers", 1) == 0
    assert capsys.readouterr().out == f"{complete} is complete (tiny): nothing to do\n"
    assert {path.name: path.stat().st_mtime_ns for path in complete.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--short-side", 32), "short side 64, not 32"),
        (("--quality", 90), "quality 95, not 90"),
        (("--seed", 1), "seed 0, not 1"),
        (("--name", "mine"), "name tiny, not mine"),
        (("--shard-samples", 15), "another number of images or --shard-samples"),
        (("--apply-exif",), "--apply-exif False, not True"),
    ],
)
def test_a_complete_folder_of_other_options_is_kept(
    complete: Path, raw_folder: Path, capsys: pytest.CaptureFixture[str], options: tuple, difference: str
) -> None:
    before = folder_bytes(complete)
    assert build("--input", raw_folder, "--output", complete, *TINY, *options) == 2
    error = capsys.readouterr().err
    assert f"--output is {complete}: it is a complete data set with {difference}" in error
    assert error.count("\n") == 1
    assert folder_bytes(complete) == before


def test_a_complete_folder_of_another_source_is_kept(
    complete: Path, raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "tiny"
    shutil.copytree(raw_folder, other)
    changed = other / "val" / "red-square" / "red-square_000.JPEG"
    changed.rename(changed.with_name("renamed.JPEG"))
    assert build("--input", other, "--output", complete, *TINY) == 2
    assert "is a complete data set with other images" in capsys.readouterr().err
    (other / "val" / "red-square").rename(other / "val" / "red")
    (other / "train" / "red-square").rename(other / "train" / "red")
    assert build("--input", other, "--output", complete, *TINY) == 2
    assert "is a complete data set with 3 other classes" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["train-000001.tar", "val-000000.idx", "mean.npy"])
def test_a_damaged_folder_is_built_again(complete: Path, tiny_shards: Path, raw_folder: Path, damage: str) -> None:
    if damage.endswith(".tar"):
        (complete / damage).write_bytes(b"short")
    else:
        (complete / damage).unlink()
    assert build("--input", raw_folder, "--output", complete, *TINY, "--workers", 2) == 0
    assert folder_bytes(complete) == folder_bytes(tiny_shards)


@pytest.mark.parametrize("foreign", ["thesis.tex", "train-000000.tar", ".hidden"])
def test_foreign_files_are_not_touched(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: str
) -> None:
    (tmp_path / foreign).write_bytes(b"years of work")
    assert build("--input", raw_folder, "--output", tmp_path, *TINY) == 2
    assert f"--output is {tmp_path}: it holds {foreign!r}" in capsys.readouterr().err
    assert folder_bytes(tmp_path) == {foreign: b"years of work"}
