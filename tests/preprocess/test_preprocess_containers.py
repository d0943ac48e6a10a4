"""Layouts whose images have to be unpacked first: Parquet files and CIFAR-10's pickles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_reading import folder_bytes, read_json
from source_layouts import (
    CIFAR_NAMES,
    cifar_batch,
    parquet_table,
    python2_pickle,
    write_cifar10,
    write_parquet,
)

from atomic_files import partial_path
from errors import InputError
from preprocess.build_shards import main
from preprocess.images.transform import UnreadableImage, decode_rgb
from preprocess.sources.catalogue import RowRef
from preprocess.sources.layouts import open_source
from preprocess.sources.raw_files import RawFiles
from preprocess.sources.source import Source, SourceOptions

TRAIN, VAL = "train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"


class CountOnly:
    images = 0

    def count(self, images: int = 1, **_others: object) -> None:
        self.images += images


def opened(root: Path) -> Source:
    return open_source(root, SourceOptions())


def unpacked(source: Source, scratch: Path) -> int:
    tally = CountOnly()
    unpack = pickle.loads(pickle.dumps(RawFiles(source.root, scratch).unpack))
    for container in source.containers:
        unpack(pickle.loads(pickle.dumps(container)), tally)
    return tally.images


def contents(source: Source, scratch: Path) -> dict[tuple[str, int, str], bytes]:
    raw = RawFiles(source.root, scratch)
    return {image[:3]: raw.read(image.ref) for image in source.catalogue.images}


def write_tables(root: Path, names: list[str] | None, **rows: list) -> Path:
    root.mkdir(exist_ok=True)
    for split, each in rows.items():
        pq.write_table(parquet_table(each, names), root / f"{split}-00000-of-00001.parquet")
    return root


def test_every_row_of_parquet_is_unpacked_as_it_was(wnid_folders: Path, tmp_path: Path) -> None:
    write_parquet(wnid_folders, tmp_path / "in")
    source, scratch = opened(tmp_path / "in"), tmp_path / "scratch"
    images = opened(wnid_folders).catalogue.images
    assert unpacked(source, scratch) == len(images)
    assert contents(source, scratch) == {i[:3]: (wnid_folders / i.canonical_name).read_bytes() for i in images}
    assert len(list(scratch.iterdir())) == 3 * 3


def test_what_is_unpacked_is_not_unpacked_again_and_what_is_half_is(wnid_folders: Path, tmp_path: Path) -> None:
    write_parquet(wnid_folders, tmp_path / "in")
    source, scratch = opened(tmp_path / "in"), tmp_path / "scratch"
    images = unpacked(source, scratch)
    before = folder_bytes(scratch)
    times = {path: path.stat().st_mtime_ns for path in scratch.iterdir()}
    assert unpacked(source, scratch) == images  # the progress counts them all the same
    assert {path: path.stat().st_mtime_ns for path in scratch.iterdir()} == times
    (scratch / "data%2Ftrain-00000-of-00002.parquet.npy").unlink()
    records = scratch / "data%2Ftrain-00001-of-00002.parquet.records"
    records.rename(partial_path(records))
    unpacked(source, scratch)
    assert folder_bytes(scratch) == before


def test_what_is_not_unpacked_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"^cannot be read: No such file or directory$"):
        RawFiles(tmp_path, tmp_path).read(RowRef("train-0.parquet", 0))


def test_a_container_that_changes_after_the_listing_is_an_error(tmp_path: Path) -> None:
    rows = [(b"1", "a.png", 0), (b"2", "b.png", 1)]
    source = opened(write_tables(tmp_path / "in", ["x", "y"], train=rows, validation=rows))
    write_tables(tmp_path / "in", ["x", "y"], train=rows[:1])
    with pytest.raises(InputError, match=rf"/{TRAIN} has 1 rows instead of 2: it changed during the build; start"):
        unpacked(source, tmp_path / "scratch")
    (tmp_path / "in" / TRAIN).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=rf"/{TRAIN} is truncated or not Parquet"):
        unpacked(source, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").glob("train*"))


def test_without_wnids_in_the_paths_classes_are_names_sorted_and_labels_follow(tmp_path: Path) -> None:
    names = ["zebra", "ant"]
    train = [(b"z", "1.png", 0), (b"a", "2.png", 1)]
    source = opened(write_tables(tmp_path / "in", names, train=train, val=[(None, "3.png", 0)]))
    assert [(entry.id, entry.name) for entry in source.catalogue.classes] == [("ant", "ant"), ("zebra", "zebra")]
    unpacked(source, tmp_path / "scratch")
    assert contents(source, tmp_path / "scratch") == {
        ("train", 0, "train/ant/2.png"): b"a",
        ("train", 1, "train/zebra/1.png"): b"z",
        ("val", 1, "val/zebra/3.png"): b"",
    }


@pytest.mark.parametrize("path", [None, "same.png"])
def test_images_without_names_of_their_own_are_named_after_their_rows(tmp_path: Path, path: str | None) -> None:
    train = [(b"1", path, 0), (b"2", path, 0), (b"3", path, 1)]
    source = opened(write_tables(tmp_path / "in", ["x", "y"], train=train, validation=[(b"3", "c.png", 0)]))
    assert [image.canonical_name for image in source.catalogue.images] == [
        "train/x/train-00000-of-00001_000000",
        "train/x/train-00000-of-00001_000001",
        "train/y/train-00000-of-00001_000002",
        "val/x/validation-00000-of-00001_000000",
    ]


@pytest.mark.parametrize("odd", ["n01440764_1.JPEG", "3.JPEG", "n02119789_n03887697.JPEG"])
def test_wnids_are_ids_only_where_all_images_agree(tmp_path: Path, odd: str) -> None:
    train = [(b"", "n01440764_2_n01440764.JPEG", 0), (b"", "n02119789_1_n02119789.JPEG", 1)]
    root = write_tables(tmp_path / "in", ["tench", "kit fox"], train=train, validation=train[:1])
    assert [entry.id for entry in opened(root).catalogue.classes] == ["n01440764", "n02119789"]
    write_tables(root, ["tench", "kit fox"], train=[*train, (b"", odd, 1)])
    assert [entry.id for entry in opened(root).catalogue.classes] == ["kit fox", "tench"]


def spoiled(root: Path, **rows: list) -> None:
    write_tables(root, ["x", "y"], **rows)


def renamed(rows: list, image: str, label: str) -> pa.Table:
    table = parquet_table(rows, ["x", "y"])
    metadata = json.dumps(json.loads(table.schema.metadata[b"huggingface"])).replace('"label"', f'"{label}"')
    return table.rename_columns([image, label]).replace_schema_metadata({"huggingface": metadata})


GOOD = [(b"1", "a.png", 0), (b"2", "b.png", 1)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / VAL).unlink(), r"has train, but no val split: add --val-fraction 0\.1"),
        (lambda root: (root / TRAIN).write_bytes(b"PAR1"), rf"/{TRAIN} is truncated or not Parquet"),
        (
            lambda root: (root / TRAIN).rename(root / "train-00000-of-00294.parquet"),
            r"has 1 of 294 files train-\*: number 1 is",
        ),
        (
            lambda root: spoiled(root, train=[*GOOD, (b"", "c.png", -1)]),
            rf"/{TRAIN}, row 2 has label -1; use 0 to 1",
        ),
        (lambda root: spoiled(root, train=[*GOOD, (b"", "c.png", 2)]), rf"/{TRAIN}, row 2 has label 2; use 0 to 1"),
        (lambda root: write_tables(root, None, train=[*GOOD, (b"", "c.png", None)]), rf"/{TRAIN}, row 2 has no label"),
        (
            lambda root: write_tables(root, ["x", "x"], train=GOOD),
            r"have the name 'x', and the paths of the images no wnids",
        ),
        (lambda root: write_tables(root, ["x", "y", "z"], train=GOOD), r"class 'z' has no image in the train split"),
        (
            lambda root: pq.write_table(renamed(GOOD, "scan", "label"), root / TRAIN),
            rf"/{TRAIN} has no column 'image' or 'img': it has scan, label; use --image-column with one of them",
        ),
        (
            lambda root: pq.write_table(renamed(GOOD, "image", "coarse_label"), root / TRAIN),
            rf"/{TRAIN} has no column 'label' or 'labels': it has image, coarse_label; use --label-column",
        ),
    ],
)
def test_what_is_wrong_with_parquet_is_said(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    root = write_tables(tmp_path / "in", ["x", "y"], train=GOOD, validation=GOOD)
    opened(root)
    spoil(root)
    with pytest.raises(InputError, match=message):
        opened(root)


def test_parquet_of_train_and_test_only_with_other_columns(tmp_path: Path) -> None:
    """As most data sets on the Hub are."""
    (tmp_path / "in").mkdir()
    rows = [(bytes([number]), f"{number}.png", number % 2) for number in range(20)]
    for split, part in (("train", rows[:16]), ("test", rows[16:])):
        pq.write_table(renamed(part, "img", "labels"), tmp_path / "in" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"has train and test, but no val split: add .*--test-as-val"):
        opened(tmp_path / "in")
    source = open_source(tmp_path / "in", SourceOptions(val_fraction=0.25))
    assert [len(source.catalogue.split(split)) for split in ("train", "val", "test")] == [12, 4, 4]
    assert [entry.id for entry in source.catalogue.classes] == ["x", "y"]
    unpacked(source, tmp_path / "scratch")
    assert set(contents(source, tmp_path / "scratch").values()) == {data for data, _, _ in rows}
    as_val = open_source(tmp_path / "in", SourceOptions(test_as_val=True))
    assert [len(as_val.catalogue.split(split)) for split in ("train", "val", "test")] == [16, 4, 0]


def test_parquet_of_bytes_and_names_in_folders_of_splits(tmp_path: Path) -> None:
    for split, labels in (("train", ["10", "9", "9"]), ("valid", ["9", "10"])):
        (tmp_path / "in" / split).mkdir(parents=True)
        table = pa.table(
            {"Image": [f"{split} {label}".encode() for label in labels], "Class": labels, "coarse": labels}
        )
        pq.write_table(table, tmp_path / "in" / split / "0000.parquet")
    source, scratch = opened(tmp_path / "in"), tmp_path / "scratch"
    assert [entry.id for entry in source.catalogue.classes] == ["09", "10"], "in the order of the numbers"
    unpacked(source, scratch)
    assert contents(source, scratch) == {
        ("train", 1, "train/10/0000_000000"): b"train 10",
        ("train", 0, "train/09/0000_000001"): b"train 9",
        ("train", 0, "train/09/0000_000002"): b"train 9",
        ("val", 0, "val/09/0000_000000"): b"valid 9",
        ("val", 1, "val/10/0000_000001"): b"valid 10",
    }
    with pytest.raises(InputError, match=r"has no column 'fine': it has Image, Class, coarse; use --label-column"):
        open_source(tmp_path / "in", SourceOptions(label_column="fine"))


def test_parquet_without_names_of_splits_is_divided(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = [(bytes([number]), f"{number}.png", number % 2) for number in range(20)]
    pq.write_table(parquet_table(rows, ["x", "y"]), tmp_path / "in" / "pets.parquet")
    source = open_source(tmp_path / "in", SourceOptions(val_fraction=0.25))
    assert [len(source.catalogue.split(split)) for split in ("train", "val")] == [16, 4]


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "in" / "cifar-10-batches-py"
    write_cifar10(folder)
    return folder


def test_rows_of_cifar10_are_images_with_their_labels(cifar: Path, tmp_path: Path) -> None:
    source, scratch = opened(cifar), tmp_path / "scratch"
    assert unpacked(source, scratch) == 120
    assert [entry.name for entry in source.catalogue.classes] == CIFAR_NAMES
    found = contents(source, scratch)
    assert len(found) == 120
    assert opened(cifar.parent).catalogue.images[0].canonical_name == source.catalogue.images[0].canonical_name
    for number, split in ((1, "train"), (5, "train"), (6, "val")):
        batch = cifar_batch("", number, 20)
        stem = "test_batch" if split == "val" else f"data_batch_{number}"
        for row, label in enumerate(batch["labels"]):
            data = found[split, label, f"{split}/{CIFAR_NAMES[label]}/{stem}_{row:05d}_{batch['filenames'][row]}"]
            image = np.asarray(decode_rgb(data))
            assert image.shape == (32, 32, 3)
            np.testing.assert_array_equal(image, batch["data"][row].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar10_is_built_and_leaves_nothing_of_what_was_unpacked(cifar: Path, tmp_path: Path) -> None:
    options = ("--short-side", "32", "--workers", "1", "--name", "cifar10")
    for name, source in (("one", cifar), ("two", cifar.parent)):
        assert main(["--input", str(source), "--output", str(tmp_path / name), *options]) == 0
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")
    page = read_json(tmp_path / "one")
    assert {split: each["samples"] for split, each in page["splits"].items()} == {"train": 100, "val": 20}
    data = np.concatenate([cifar_batch("", number, 20)["data"].reshape(-1, 3, 1024) for number in range(1, 6)])
    np.testing.assert_allclose(page["rgb"]["mean"], data.mean(axis=(0, 2)), rtol=1e-12)


class Harm:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


def changed(cifar: Path, **values: object) -> None:
    (cifar / "data_batch_2").write_bytes(python2_pickle({**cifar_batch("", 2, 20), **values}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cifar: (cifar / "data_batch_3").unlink(), r"/data_batch_3 is missing"),
        (lambda cifar: (cifar / "batches.meta").unlink(), r"/batches\.meta is missing"),
        (lambda cifar: shutil.copy(cifar / "test_batch", cifar / "batches.meta"), r"/batches\.meta has no label_names"),
        (
            lambda cifar: shutil.copy(cifar / "batches.meta", cifar / "test_batch"),
            r"/test_batch is not a batch of CIFAR-10",
        ),
        (lambda cifar: changed(cifar, labels=[0] * 19), r"/data_batch_2 is not a batch of CIFAR-10"),
        (lambda cifar: changed(cifar, labels=[0] * 19 + [10]), r"/data_batch_2, row 19 has label 10; use 0 to 9"),
        (lambda cifar: (cifar / "test_batch").write_bytes((cifar / "test_batch").read_bytes()[:5000]), r"truncated"),
        (lambda cifar: (cifar / "test_batch").write_bytes(pickle.dumps([1])), r"it holds a list"),
        (
            lambda cifar: (cifar / "test_batch").write_bytes(pickle.dumps({"data": Harm()})),
            r"/test_batch is truncated or not a pickle of CIFAR-10: .*posix\.mkdir",
        ),
    ],
)
def test_what_is_wrong_with_cifar10_is_said(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(cifar)
    with pytest.raises(InputError, match=message):
        opened(cifar)
    assert not (tmp_path / "harmed").exists()  # a pickle cannot have any function called
