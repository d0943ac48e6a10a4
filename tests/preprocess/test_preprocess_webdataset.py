"""WebDataset tars of other tools as the source: their images in place, their labels from cls or json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import webdataset
from raw_data import RAW_CLASSES
from shard_reading import read_json, read_samples
from source_layouts import WNIDS, tar_of

from errors import InputError
from preprocess.build_shards import main
from preprocess.sources.layouts import open_source
from preprocess.sources.raw_files import RawFiles
from preprocess.sources.source import Source, SourceOptions


def write(root: Path, **tars: list[Mapping[str, object]]) -> Path:
    """Write tars as their own library does."""
    root.mkdir(parents=True, exist_ok=True)
    for name, samples in tars.items():
        path = root / f"{name.replace('__', '/')}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(path)) as writer:
            for sample in samples:
                writer.write(dict(sample))
    return root


def sample(key: str, label: object, kind: str = "cls", image: str = "jpg", **fields: object) -> dict[str, object]:
    data = json.dumps({"label": label, **fields}).encode() if kind == "json" else str(label).encode()
    return {"__key__": key, image: f"image {key}".encode(), kind: data, "txt": b"a caption"}


def opened(root: Path, **options: object) -> Source:
    return open_source(root, SourceOptions(**options))


def contents(source: Source) -> dict[tuple[str, str, str], bytes]:
    raw, classes = RawFiles(source.root, Path("none")), source.catalogue.classes
    return {(i.split, classes[i.label].id, i.canonical_name): raw.read(i.ref) for i in source.catalogue.images}


def test_the_hubs_imagenet_has_wnids_in_its_keys(tmp_path: Path) -> None:
    train = [sample(f"{WNIDS[label]}_{number}", label) for label in (2, 0, 1) for number in range(2)]
    val = [sample(f"ILSVRC2012_val_{label:08d}_{WNIDS[label]}", label, image="webp") for label in range(3)]
    write(tmp_path, **{"imagenet1k-train-0000": train[:3], "imagenet1k-train-0001": train[3:]})
    source = opened(write(tmp_path, **{"imagenet1k-validation-00": val}))
    assert source.containers == ()
    assert contents(source) == {
        **{
            ("train", wnid, f"train/{wnid}/{wnid}_{number}.jpg"): f"image {wnid}_{number}".encode()
            for wnid in WNIDS
            for number in range(2)
        },
        **{
            ("val", wnid, f"val/{wnid}/ILSVRC2012_val_{label:08d}_{wnid}.webp"): (
                f"image ILSVRC2012_val_{label:08d}_{wnid}".encode()
            )
            for label, wnid in enumerate(WNIDS)
        },
    }


def test_img2datasets_output_has_its_label_in_json(tmp_path: Path) -> None:
    first = [sample(f"0000000{number}", number, "json", url="http://x", height=3) for number in range(10)]
    source = opened(write(tmp_path, **{"00000": first, "00001": [sample("000010000", 10, "json")]}), val_fraction=0.0)
    assert [entry.id for entry in source.catalogue.classes] == [f"{label:02d}" for label in range(11)]
    assert contents(source)["train", "07", "07/00000007.jpg"] == b"image 00000007"
    with pytest.raises(InputError, match=r"sample 00000000 has no column 'kind': it has label, url, height"):
        opened(tmp_path, label_column="kind")


def test_keys_that_repeat_and_labels_that_are_names(tmp_path: Path) -> None:
    samples = [sample("0", "cat"), sample("1", "dog", image="png")]
    tars = {f"{split}__{number}": samples for split in ("train", "dev") for number in (0, 1)}
    source = opened(write(tmp_path, **tars))
    names = sorted(name for _, _, name in contents(source))
    assert names == [
        *(f"train/cat/train_{number}_0.jpg" for number in (0, 1)),
        *(f"train/dog/train_{number}_1.png" for number in (0, 1)),
        *(f"val/cat/dev_{number}_0.jpg" for number in (0, 1)),
        *(f"val/dog/dev_{number}_1.png" for number in (0, 1)),
    ]


def test_samples_without_an_image_are_counted(tmp_path: Path) -> None:
    lone = {"__key__": "9", "json": b"{}"}
    source = opened(write(tmp_path, a=[sample("0", "x"), lone, sample("1", "y")]), val_fraction=0.0)
    assert source.skipped == {"samples without an image": 1}
    assert len(source.catalogue.images) == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"__key__": "7", "jpg": b"", "txt": b"x"},
            r"a\.tar, sample 7 has no cls or json with a label, only jpg, txt",
        ),
        ({"__key__": "7", "jpg": b"", "cls": b""}, r"a\.tar, sample 7 has label ''; use a number from 0 or a name"),
        ({"__key__": "7", "jpg": b"", "json": b"{"}, r"a\.tar, sample 7 has a json that cannot be read"),
        (
            {"__key__": "7", "jpg": b"", "json": b'{"label": [1]}'},
            r"sample 7 has label \[1\]; use a number",
        ),
    ],
)
def test_samples_without_a_label_are_said(tmp_path: Path, extra: dict[str, object], message: str) -> None:
    write(tmp_path, a=[sample("0", "x"), sample("1", "y"), extra])
    with pytest.raises(InputError, match=message):
        opened(tmp_path, val_fraction=0.0)


def test_a_truncated_tar_and_repeated_files_are_said(tmp_path: Path) -> None:
    write(tmp_path, a=[sample("0", "x"), sample("1", "y")])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"b\.tar is truncated or not a tar"):
        opened(tmp_path, val_fraction=0.0)
    (tmp_path / "b.tar").write_bytes(tar_of([("0.jpg", b""), ("0.jpg", b""), ("0.cls", b"x")]))
    with pytest.raises(InputError, match=r"b\.tar is no tar of samples: 0\.jpg: duplicate file name"):
        opened(tmp_path, val_fraction=0.0)


def test_a_tar_of_no_samples_beside_class_folders_is_skipped_only_where_they_are_named(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(b"")
    (tmp_path / "download.tar").write_bytes(tar_of([("train/a/1.jpg", b""), ("train/b/1.jpg", b"")]))
    with pytest.raises(InputError, match=r"holds download\.tar: .*, or skip them with --layout folders$"):
        opened(tmp_path)
    assert {image.canonical_name for image in opened(tmp_path, layout="folders").catalogue.images} == {
        *("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg")
    }


def test_shards_are_built_from_tars(raw_folder: Path, tmp_path: Path) -> None:
    samples = [
        {"__key__": path.stem, "jpg": path.read_bytes(), "cls": str(label).encode()}
        for label, name in enumerate(RAW_CLASSES)
        for path in sorted((raw_folder / "val" / name).glob("*_0*"))
    ]
    write(tmp_path / "in", **{"pets-000": samples[::2], "pets-001": samples[1::2]})
    options = ["--short-side", "16", "--workers", "1", "--val-fraction", "0.2"]
    assert main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *options]) == 0
    assert [entry["id"] for entry in read_json(tmp_path / "out")["classes"]] == ["0", "1", "2"]
    for key, _, label in read_samples(tmp_path / "out", "train"):
        assert key.split("/")[1].startswith(RAW_CLASSES[int(label)])
