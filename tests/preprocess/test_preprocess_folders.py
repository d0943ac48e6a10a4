import os
from pathlib import Path

import odd_images
import pytest
from PIL import Image
from raw_data import encoded

from errors import InputError
from preprocess.images.formats import format_of
from preprocess.images.transform import UnreadableImage
from preprocess.sources import skipping
from preprocess.sources.catalogue import IMAGE_ENDINGS, Catalogue, FileRef
from preprocess.sources.layouts import open_source
from preprocess.sources.raw_files import RawFiles
from preprocess.sources.source import SourceOptions


def fill(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def catalogue(root: Path, val_fraction: float | None = None, **options: object) -> Catalogue:
    return open_source(root, SourceOptions(val_fraction=val_fraction, **options)).catalogue


def ids(found: Catalogue) -> list[str]:
    return [entry.id for entry in found.classes]


def placed(found: Catalogue) -> set[tuple[str, str, str]]:
    assert all(image.ref == FileRef(image.canonical_name) for image in found.images)
    return {(image.split, found.classes[image.label].id, image.canonical_name) for image in found.images}


def test_train_val_and_test_folders(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.jpg", "train/a/2.JPEG", "train/a/deep/er/3.PnG", "val/a/1.jpg", "val/b/9.webp")
    fill(tmp_path, "train/stray.jpg", "train/a/notes.txt", "train/a/sums.md5", "test/a/1.jpg", "other/c/1.jpg")
    found = catalogue(tmp_path)
    assert ids(found) == ["a", "b"]
    assert placed(found) == {
        ("train", "a", "train/a/2.JPEG"),
        ("train", "a", "train/a/deep/er/3.PnG"),
        ("train", "b", "train/b/1.jpg"),
        ("val", "a", "val/a/1.jpg"),
        ("val", "b", "val/b/9.webp"),
        ("test", "a", "test/a/1.jpg"),
    }


@pytest.mark.parametrize("train", ["train", "Training", "training_set", "TRAIN"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev", "val-set"])
def test_splits_have_the_names_that_people_give_them(tmp_path: Path, train: str, val: str) -> None:
    fill(tmp_path, *(f"{split}/{name}/1.jpg" for split in (train, val, "Testing") for name in "ab"))
    source = open_source(tmp_path, SourceOptions())
    assert source.splits == ("train", "val", "test")
    assert source.ignored == ()
    assert placed(source.catalogue) == {
        (split, name, f"{folder}/{name}/1.jpg")
        for split, folder in (("train", train), ("val", val), ("test", "Testing"))
        for name in "ab"
    }


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val", "valid") for name in "ab"))
    with pytest.raises(InputError, match=r"two folders for the val split, val and valid; rename or remove one"):
        catalogue(tmp_path)


@pytest.mark.parametrize("images", [("test/1.jpg",), ("test/images/1.jpg",), ("test/a/1.jpg", "test/unknown/1.jpg")])
def test_a_test_folder_without_the_classes_of_train_is_ignored_and_named(tmp_path: Path, images: tuple) -> None:
    fill(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"), *images)
    source = open_source(tmp_path, SourceOptions())
    assert (source.splits, source.ignored) == (("train", "val"), ("test",))


def test_folders_that_are_not_looked_at_are_named(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"))
    fill(tmp_path, "other/c/1.jpg", ".cache/x/1.jpg", "notes.txt")
    assert open_source(tmp_path, SourceOptions()).ignored == ("other",)


@pytest.mark.parametrize(
    ("files", "advised"),
    [
        (["pets/train/cat/1.jpg", "pets/train/dog/1.jpg", "pets/val/cat/1.jpg", "pets/val/dog/1.jpg"], "pets"),
        (["pets/Training/cat/1.jpg", "docs/x/1.jpg"], "pets"),
        (["train/train/cat/1.jpg", "train/val/cat/1.jpg"], "train"),
        (["train/pets/train/cat/1.jpg", "train/x/1.jpg"], "train/pets"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/test/1.jpg", "val/b/1.jpg"], "val/a"),
        (["images/cat/1.jpg", "images/dog/1.jpg"], "images"),
        (["a/b/c/cat/1.jpg", "a/b/c/dog/1.jpg"], "a/b/c"),
    ],
)
def test_a_folder_around_the_data_set_is_refused_and_the_right_one_is_named(
    tmp_path: Path, files: list[str], advised: str
) -> None:
    with pytest.raises(InputError, match=rf"; use {tmp_path / advised} as --input$"):
        catalogue(fill(tmp_path, *files), None if files[0].startswith("train") else 0.1)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "cat/2.jpg")
    (tmp_path / "cat" / "itself").symlink_to(tmp_path / "cat")
    with pytest.raises(
        InputError, match=r"has a single class folder, 'cat'; use a folder with at least 2, or --labels FILE$"
    ):
        catalogue(tmp_path, 0.1)


IMAGE = encoded(Image.new("RGB", (20, 30), (1, 2, 3)))


def test_images_are_told_by_their_content_where_the_ending_does_not_tell(tmp_path: Path) -> None:
    kinds = odd_images.every_kind()
    for name in "ab":
        fill(tmp_path, f"{name}/1.jpg", f"{name}/3.txt", f"{name}/empty.jfif", f"{name}/README")
        (tmp_path / name / "BMW.txt").write_text("BMW is how this text begins, and it goes on for a while")
        (tmp_path / name / "P1").write_text("P1 is how this text begins")
        for number, (kind, data) in enumerate(kinds.items()):
            (tmp_path / name / f"{number} {kind}.download").write_bytes(data)
        (tmp_path / name / "2.jfif").write_bytes(IMAGE)
        (tmp_path / name / "none").write_bytes(IMAGE)
        (tmp_path / name / "heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    source = open_source(tmp_path, SourceOptions(val_fraction=0.0))
    taken = {image.canonical_name for image in source.catalogue.images if image.canonical_name[0] == "a"}
    assert taken == {
        *("a/1.jpg", "a/2.jfif", "a/none", "a/heic"),
        *(f"a/{number} {kind}.download" for number, kind in enumerate(kinds)),
    }
    assert source.skipped == {".txt": 4, ".jfif": 2, "no ending": 4}


def test_a_pgm_of_plain_numbers_is_an_image() -> None:
    assert format_of(b"P2\n# drawn\n2 1\n255\n0 255\n") == "PPM"
    assert format_of(b"P6 2 1 255 ......") == "PPM"
    assert format_of(b"") is None
    assert format_of(b"BM") is None


def test_what_file_managers_and_editors_leave_is_counted_and_no_class(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"))
    fill(tmp_path, "train/.ipynb_checkpoints/a-checkpoint.jpg", "train/a/.ipynb_checkpoints/1-checkpoint.jpg")
    fill(tmp_path, "__MACOSX/train/a/._1.jpg", "train/__MACOSX/._a", "train/a/._1.jpg", "train/a/.DS_Store")
    fill(tmp_path, "val/a/Thumbs.db", "val/b/Thumbs.db", "val/@eaDir/x.jpg", "train/stray.jpg", "train/list.txt")
    source = open_source(tmp_path, SourceOptions())
    assert ids(source.catalogue) == ["a", "b"]
    assert len(source.catalogue.images) == 4
    assert source.ignored == ()
    assert source.skipped == {
        **{".ipynb_checkpoints/": 2, "__MACOSX/": 1, "._*": 1, ".DS_Store": 1, "Thumbs.db": 2, "@eaDir/": 1},
        ".jpg outside the class folders": 1,
        ".txt": 1,
    }


@pytest.mark.parametrize(
    ("archives", "folder", "shown"),
    [
        (["train/fox.tar"], "/train", r"fox\.tar"),
        (["val/bird.ZIP", "val/fox.tar.gz"], "/val", r"bird\.ZIP, fox\.tar\.gz"),
        ([f"{name}.7z" for name in "vwxyz"], "", r"v\.7z, w\.7z, x\.7z and 2 more"),
        (["dataset.zip"], "", r"dataset\.zip"),
    ],
)
def test_archives_next_to_folders_are_refused(tmp_path: Path, archives: list[str], folder: str, shown: str) -> None:
    fill(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"), *archives)
    refused = rf"^input folder {tmp_path}{folder} holds {shown}: archives are not read here; unpack them into folders"
    with pytest.raises(InputError, match=refused):
        catalogue(tmp_path)


def test_an_archive_next_to_class_folders_without_splits_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "val.zip")
    for _ in range(2):
        with pytest.raises(InputError, match=r"holds val\.zip: archives are not read here"):
            catalogue(tmp_path, 0.0)
        fill(tmp_path, "b/1.jpg")


def test_the_archive_of_the_data_set_does_not_hide_the_right_input(tmp_path: Path) -> None:
    fill(tmp_path, "pets.zip", "pets/cat/1.jpg", "pets/dog/1.jpg")
    with pytest.raises(InputError, match=rf"single class folder, 'pets'; use {tmp_path}/pets as --input$"):
        catalogue(tmp_path, 0.0)


def test_files_next_to_folders_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"))
    fill(tmp_path, "README", "1.png", "train/labels.csv", "images.zip")
    source = open_source(tmp_path, SourceOptions("folders"))  # as named, archives are a second copy
    assert source.skipped == {"no ending": 1, ".png outside the class folders": 1, ".csv": 1, ".zip": 1}


def test_only_files_with_unusual_endings_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(
        tmp_path,
        *(f"{name}/{number}.JPEG" for name in "ab" for number in range(9)),
        "a/1.jfif",
        "a/._2.jfif",
        "b/1.xml",
    )
    opened = []
    monkeypatch.setattr(skipping.os, "open", lambda path, _: opened.append(path) or os.dup(0))
    catalogue(tmp_path, 0.0)
    assert opened == [str(tmp_path / "a" / "1.jfif")]


def test_class_folders_whose_names_are_one_in_text_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a\\xff/1.jpg", os.fsdecode(b"a\xff/1.jpg"))
    with pytest.raises(InputError, match=r"2 classes are 'a\\\\xff' in text"):
        catalogue(tmp_path, val_fraction=0.0)


def test_a_test_folder_is_the_val_split_only_where_the_command_line_says_so(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{name}/{split}.jpg" for split in ("train", "test") for name in "ab"))
    with pytest.raises(
        InputError, match=r"has train and test, but no val split: add --val-fraction 0\.1 .*test-as-val"
    ):
        catalogue(tmp_path)
    found = catalogue(tmp_path, test_as_val=True)
    assert {(split, name) for split, _, name in placed(found)} == {
        *(("train", f"train/{name}/train.jpg") for name in "ab"),
        *(("val", f"test/{name}/test.jpg") for name in "ab"),
    }
    fill(tmp_path, "train/a/2.jpg", "train/b/2.jpg")
    divided = catalogue(tmp_path, 0.5)
    assert [len(divided.split(split)) for split in ("train", "val", "test")] == [2, 2, 2]
    with pytest.raises(InputError, match=r"--test-as-val cannot be combined with --val-fraction"):
        catalogue(tmp_path, 0.5, test_as_val=True)


def test_class_folders_alone_are_divided(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{i}.jpg" for name, count in (("a", 40), ("b", 2), ("c", 1)) for i in range(count)))
    fill(tmp_path, "test/x/1.jpg", "val/y/1.jpg")
    found = catalogue(tmp_path, val_fraction=0.1)
    assert ids(found) == ["a", "b", "c"]
    val = [found.classes[image.label].id for image in found.split("val")]
    assert sorted(val) == ["a"] * 4 + ["b"]  # at least one of two, none of one
    train = {image.canonical_name for image in found.split("train")}
    assert train | {image.canonical_name for image in found.split("val")} == {i.canonical_name for i in found.images}
    assert len(found.images) == 43


def test_a_train_folder_alone_is_divided(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{name}/{i}.jpg" for name in "ab" for i in range(10)))
    found = catalogue(tmp_path, val_fraction=0.3)
    assert (len(found.split("train")), len(found.split("val"))) == (14, 6)


def test_no_fraction_leaves_no_val_and_the_largest_leaves_a_train_image(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{i}.jpg" for name in "ab" for i in range(3)))
    assert len(catalogue(tmp_path, val_fraction=0.0).split("train")) == 6
    assert len(catalogue(tmp_path, val_fraction=0.99).split("train")) == 2


def test_the_choice_for_val_is_the_seeds(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{i}.jpg" for name in "ab" for i in range(50)))

    def kept(seed: int) -> set[str]:
        return {image.canonical_name for image in catalogue(tmp_path, 0.2, seed=seed).split("val")}

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)
    assert {name[2:] for name in kept(1) if name[0] == "a"} != {name[2:] for name in kept(1) if name[0] == "b"}


def test_loops_of_links_end_and_other_links_are_followed(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "a/1.jpg", "a/deep/2.jpg")
    fill(tmp_path / "elsewhere", "3.jpg")
    (root / "a" / "deep" / "up").symlink_to(root / "a")
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "b").symlink_to(root / "a" / "deep")
    sources = {image.canonical_name for image in catalogue(root, 0.0).images}
    assert {"a/1.jpg", "a/deep/2.jpg", "a/linked/3.jpg", "b/2.jpg"} <= sources
    assert len(sources) < 12


def test_a_broken_link_is_a_broken_image_and_a_pipe_is_none(tmp_path: Path) -> None:
    root = fill(tmp_path, "a/1.jpg", "b/1.jpg")
    (root / "a" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "a" / "pipe.jpg")
    assert [image.canonical_name for image in catalogue(root, 0.0).images] == ["a/1.jpg", "a/gone.jpg", "b/1.jpg"]
    with pytest.raises(UnreadableImage, match=r"^cannot be read: No such file or directory$"):
        RawFiles(root, tmp_path).read(FileRef("a/gone.jpg"))


def test_a_file_too_large_for_a_workers_memory_is_refused_unread(tmp_path: Path) -> None:
    root = fill(tmp_path, "a/1.jpg")
    os.truncate(root / "a" / "1.jpg", 1 << 40)  # a hole, no disk space
    with pytest.raises(UnreadableImage, match=r"^a file of 1048576 MiB, more than 288$"):
        RawFiles(root, tmp_path).read(FileRef("a/1.jpg"))


@pytest.mark.parametrize(
    ("files", "val_fraction", "message"),
    [
        ([], None, r"holds no class folders; put images into <class>/, or name their --labels FILE"),
        (["1.jpg", "2.jpg", "a.txt"], None, r"holds 2 images, but no class folders; put images into <class>/"),
        (["a/1.jpg", "b/1.jpg"], None, r"has train, but no val split: add --val-fraction 0\.1"),
        (["train/a/1.jpg", "train/b/1.jpg"], None, r"has train, but no val split: add --val-fraction 0\.1"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"], 0.1, r"own val split: leave --val-fraction"),
        (["train/1.jpg", "val/a/1.jpg"], None, r"/train holds 1 images, but no class folders"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/1.jpg"], None, r"/val holds 1 images, but no class folders"),
        (["val/a/1.jpg", "val/b/1.jpg"], None, r"has val, but no train split; .* add --splits val$"),
        (["a/1.jpg", "b/1.txt"], 0.1, r"class 'b' has no image in .*; add images, or remove the folder"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.gif"], None, r"class 'a' has no image in .*/val; add"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"],
            None,
            r"class 'c' is in .*/val but not in .*/train",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    tmp_path: Path, files: list[str], val_fraction: float | None, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        catalogue(fill(tmp_path, *files), val_fraction)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_or_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        catalogue(tmp_path / "nowhere", 0.1)
    with pytest.raises(InputError, match=r"file is not a folder"):
        catalogue(fill(tmp_path, "file") / "file", 0.1)


def test_classes_labels_and_files_are_those_of_image_folder(raw_folder: Path) -> None:
    folder = pytest.importorskip("torchvision.datasets.folder")
    assert folder.IMG_EXTENSIONS == IMAGE_ENDINGS
    found = catalogue(raw_folder)
    for split in ("train", "val"):
        reference = folder.ImageFolder(str(raw_folder / split), loader=lambda path: path)
        assert ids(found) == reference.classes
        ours = [(str(raw_folder / image.canonical_name), image.label) for image in found.split(split)]
        assert sorted(ours) == sorted(reference.samples)
