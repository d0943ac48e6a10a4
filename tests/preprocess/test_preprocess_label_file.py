"""Folders of images with a file of labels, as competitions and other programs leave them."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_data import RAW_CLASSES
from shard_reading import read_json, read_samples

from errors import InputError
from preprocess.build_shards import main
from preprocess.sources.layouts import open_source
from preprocess.sources.source import Source, SourceOptions


def write(root: Path, table: str, *images: str, name: str = "labels.csv") -> Path:
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(b"")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(table)
    return root


def opened(root: Path, name: str = "labels.csv", **options: object) -> Source:
    return open_source(root, SourceOptions(labels=Path(name), **{"val_fraction": 0.0, **options}))


def listed(source: Source) -> dict[str, tuple[str, str]]:
    classes = source.catalogue.classes
    return {image.ref.file: (image.split, classes[image.label].id) for image in source.catalogue.images}


EXPECTED = {"train/1.jpg": ("train", "cat"), "train/b/2.png": ("train", "dog")}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("labels.csv", "id,breed\n1,cat\n2,dog\n"),
        ("labels.csv", "image,label\ntrain/1.jpg,cat\ntrain/b/2.png,dog\n"),
        ("labels.csv", "Filename,Class\n1.jpg,cat\n2.png,dog\n"),
        ("train/labels.csv", 'path,x,class\n./1.jpg,"a,b",cat\nb/2.png,,dog\n'),
        ("labels.tsv", "label\tfile_name\ncat\ttrain/1\ndog\ttrain/b/2\n"),
        ("list.txt", "train/1.jpg cat\n\ntrain/b/2.png\tdog\n"),
        ("list.txt", "\ufefftrain/1.jpg cat\ntrain/b/2.png dog\n"),
        ("labels.csv", "\ufeffimage,label\ntrain/1.jpg,cat\ntrain/b/2.png,dog\n"),
        ("labels.csv", "\ufeffimage;label;x\r\n1;cat;1,5\r\n2;dog;\r\n"),
        ("labels.csv", "image\tlabel\n1\tcat\n2\tdog\n"),
        ("labels.tsv", "image,label\n1,cat\n2,dog\n"),
    ],
)
def test_images_are_found_by_the_names_that_people_write(tmp_path: Path, name: str, table: str) -> None:
    root = write(tmp_path, table, "train/1.jpg", "train/b/2.png", "train/3.jpg", "test/9.jpg", name=name)
    source = opened(root, name)
    assert listed(source) == EXPECTED
    assert [image.canonical_name for image in source.catalogue.images] == ["cat/train/1.jpg", "dog/train/b/2.png"]
    assert source.skipped == {"images that the file of labels does not name": 2}


def test_columns_are_chosen_by_name_and_splits_are_used(tmp_path: Path) -> None:
    table = "which,what,label,split\n1,cat,x,train\n2,dog,x,train\n3,cat,x,validation\n4,dog,x,test\n"
    root = write(tmp_path, table, *(f"{number}.jpg" for number in range(1, 5)))
    source = opened(root, image_column="which", label_column="what", val_fraction=None)
    assert listed(source) == {
        "1.jpg": ("train", "cat"),
        "2.jpg": ("train", "dog"),
        "3.jpg": ("val", "cat"),
        "4.jpg": ("test", "dog"),
    }


def test_labels_that_are_numbers_keep_their_order(tmp_path: Path) -> None:
    table = "image,label\n" + "".join(f"{number},{number}\n" for number in range(12))
    source = opened(write(tmp_path, table, *(f"{number}.jpg" for number in range(12))))
    assert {int(image.ref.file.split(".")[0]): image.label for image in source.catalogue.images} == {
        number: number for number in range(12)
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", r"has no column 'file_name' or 'filename': it has ; use --image-column"),
        ("a,b\n1,cat\n", r"has no column 'file_name' or 'filename': it has a, b; use --image-column with one of them"),
        ("image,what\n1,cat\n", r"has no column 'label' or 'labels': it has image, what; use --label-column"),
        ("image,label\n", r"it names no image; use lines of an image and its label"),
        ("image,label\n1,cat\n7,dog\n", r"line 3 names image '7', which is not in .*; use paths in the input folder"),
        ("image,label\n1,cat\n1.jpg,dog\n", r"line 3 names '1\.jpg' again, after line 2; remove one of them"),
        ("image,label\n1,cat\n2,\n", r"line 3 has no label; use a label"),
        ("image,label\n1,cat\nsame,dog\n", r"line 3 names image 'same', which may be a/same\.jpg or b/same\.jpg; use"),
        ("image,label,split\n1,cat,train\n2,dog,fold\n", r"line 3 has split 'fold'; use a label, and a split such as"),
        ('image,label\n1,"cat\n', r"cannot be read as a table: unexpected end of data"),
    ],
)
def test_what_is_wrong_with_a_file_of_labels_is_said(tmp_path: Path, table: str, message: str) -> None:
    root = write(tmp_path, table, "1.jpg", "2.jpg", "a/same.jpg", "b/same.jpg")
    with pytest.raises(InputError, match=message) as caught:
        opened(root)
    assert str(root / "labels.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        (
            "labels.txt",
            "1.jpg,cat\n",
            r"'1\.jpg,cat': it is separated by a comma; use a space or a tab .* 'image,label'$",
        ),
        ("labels.txt", "my cat.jpg;a cat\n", r"it is separated by a semicolon; use a space .* 'image;label'$"),
        ("labels.txt", "image,label\n1.jpg,cat\n", r"line 1 is 'image,label': it is separated by a comma; use a space"),
        ("labels.txt", "1.jpg\n", r"line 1 is '1\.jpg'; use an image, a space or a tab, and its label$"),
        ("labels.csv", "1.jpg,cat\n2.jpg,dog\n", r"names an image, .* such as 'image,label', separated by a comma as"),
        ("labels.csv", "1.jpg;cat\n2.jpg;dog\n", r"such as 'image;label', separated by a semicolon as the others$"),
    ],
)
def test_the_separator_and_the_header_that_are_expected_are_said(
    tmp_path: Path, name: str, table: str, message: str
) -> None:
    root = write(tmp_path, table, "1.jpg", "2.jpg", name=name)
    with pytest.raises(InputError, match=message):
        opened(root, name)


def test_a_label_in_a_list_may_hold_a_comma(tmp_path: Path) -> None:
    source = opened(write(tmp_path, "1.jpg cat,fox\n2.jpg dog\n", "1.jpg", "2.jpg", name="list.txt"), "list.txt")
    assert [entry.id for entry in source.catalogue.classes] == ["cat,fox", "dog"]


def test_a_file_of_labels_that_is_not_there_is_said(tmp_path: Path) -> None:
    write(tmp_path, "", "1.jpg")
    with pytest.raises(
        InputError, match=rf"--labels is none\.csv: it is no file, nor is {tmp_path}/none\.csv; use one"
    ):
        opened(tmp_path, "none.csv")


def test_a_data_set_is_built_from_a_file_of_labels(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.relative_to(raw_folder / "val").as_posix() for path in (raw_folder / "val").glob("*/*_0*"))
    rows = [f"{name},{name.split('/')[0]}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    fixed = ["--input", str(raw_folder / "val"), "--short-side", "16", "--workers", "1", "--val-fraction", "0.2"]
    command = [*fixed, "--output", str(tmp_path / "out"), "--labels", str(tmp_path / "labels.csv")]
    assert main(command) == 0
    assert "skipped, not images: 1 images that the file" in capsys.readouterr().out
    assert [entry["id"] for entry in read_json(tmp_path / "out")["classes"]] == list(RAW_CLASSES)
    for key, _, label in read_samples(tmp_path / "out", "train"):
        assert key.startswith(RAW_CLASSES[int(label)])
    assert main([*command, "--layout", "folders"]) == 2
    assert "--labels cannot be combined with --layout folders; leave one" in capsys.readouterr().err
    assert main([*fixed, "--output", str(tmp_path / "x"), "--label-column", "breed"]) == 2
    assert "--image-column and --label-column are for tables, not for folders" in capsys.readouterr().err
