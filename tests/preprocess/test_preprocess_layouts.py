"""The layouts in which ImageNet is handed out: the same images give the same shards, and auto tells them apart."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_reading import folder_bytes, read_json
from source_layouts import (
    DEVKIT,
    SYNSETS,
    TRAIN_TAR,
    VAL_TAR,
    WNIDS,
    WORDS,
    meta_mat,
    tar_of,
    val_files,
    write_cifar10,
    write_devkit,
    write_ilsvrc,
    write_kaggle,
    write_parquet,
    write_tiny_imagenet,
)

from errors import InputError
from preprocess.build_shards import main
from preprocess.images.transform import UnreadableImage
from preprocess.manifest import ClassEntry
from preprocess.sources.catalogue import ArchiveRef
from preprocess.sources.layouts import open_source
from preprocess.sources.raw_files import RawFiles
from preprocess.sources.source import Source, SourceOptions

OPTIONS = ("--short-side", "16", "--max-rejected", "0.02", "--shard-samples", "40", "--workers", "1", "--name", "tiny")
WRITERS = {
    "ilsvrc": write_ilsvrc,
    "kaggle": write_kaggle,
    "parquet": write_parquet,
    "tiny-imagenet": write_tiny_imagenet,
}


def build(source: Path, output: Path, *options: str) -> None:
    assert main(["--input", str(source), "--output", str(output), *OPTIONS, *options]) == 0


def opened(root: Path, layout: str = "auto") -> Source:
    return open_source(root, SourceOptions(layout))


def contents(source: Source) -> dict[tuple[str, int, str], bytes]:
    """Return split, label and canonical name of every image, with its bytes where it can be read in place."""
    raw = RawFiles(source.root, Path("none"))
    return {image[:3]: raw.read(image.ref) for image in source.catalogue.images}


@pytest.fixture(scope="module")
def from_folders(wnid_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("from-folders") / "out"
    build(wnid_folders, output)
    return output


@pytest.mark.parametrize("layout", WRITERS)
def test_the_shards_are_those_of_class_folders(
    wnid_folders: Path, from_folders: Path, tmp_path: Path, layout: str
) -> None:
    WRITERS[layout](wnid_folders, tmp_path / "in")
    build(tmp_path / "in", tmp_path / "out")
    page, reference = read_json(tmp_path / "out"), read_json(from_folders)
    assert page.pop("classes") == [{"id": wnid, "name": WORDS[wnid]} for wnid in WNIDS]
    assert reference.pop("classes") == [{"id": wnid, "name": wnid} for wnid in WNIDS]
    # A Parquet file has rows only, and Tiny-ImageNet a file of boxes for each class.
    skipped = {"parquet": None, "tiny-imagenet": {".txt": 1 + len(WNIDS)}}
    assert page.pop("skipped", None) == skipped.get(layout, {".txt": 1})
    assert reference.pop("skipped") == {".txt": 1}
    assert page == reference  # samples, statistics, and what was rejected and why
    assert len(page["rejected"]) == 3
    files, others = folder_bytes(tmp_path / "out"), folder_bytes(from_folders)
    assert files.keys() == others.keys()
    assert [name for name in files if files[name] != others[name]] == ["manifest.json"]


@pytest.mark.parametrize(
    ("layout", "inner", "ignored"),
    [
        ("kaggle", ".", ("ILSVRC/Data/CLS-LOC/test",)),
        ("kaggle", "ILSVRC", ("Data/CLS-LOC/test",)),
        ("kaggle", "ILSVRC/Data/CLS-LOC", ("test",)),
        ("tiny-imagenet", ".", ("test",)),
        ("ilsvrc", ".", ()),
    ],
)
def test_a_test_split_without_labels_is_named(
    wnid_folders: Path, tmp_path: Path, layout: str, inner: str, ignored: tuple[str, ...]
) -> None:
    WRITERS[layout](wnid_folders, tmp_path / "in")
    assert opened(tmp_path / "in" / inner).ignored == ignored


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_out_of_nested_tars_of_every_format(wnid_folders: Path, tmp_path: Path, kind: int) -> None:
    write_ilsvrc(wnid_folders, tmp_path / "in", kind)
    source = opened(tmp_path / "in")
    assert contents(source) == contents(opened(wnid_folders))
    assert source.catalogue.classes == tuple(ClassEntry(wnid, WORDS[wnid]) for wnid in WNIDS)
    assert source.containers == ()


def test_bodies_in_the_tars_are_not_read_for_the_plan(
    wnid_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ilsvrc(wnid_folders, tmp_path / "in")
    body = b"x" * 3_000_000
    path = tmp_path / "in" / TRAIN_TAR
    path.write_bytes(tar_of([(f"{wnid}.tar", tar_of([("a.JPEG", body), ("b.JPEG", body)])) for wnid in WNIDS]))
    before = read_counter()
    opened(tmp_path / "in")
    assert read_counter() - before < 1_000_000


def read_counter() -> int:
    """Return how many bytes this process has read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar:")).split()[1])


def test_what_an_archive_has_lost_since_is_an_unreadable_image(wnid_folders: Path, tmp_path: Path) -> None:
    write_ilsvrc(wnid_folders, tmp_path / "in")
    image = next(i for i in opened(tmp_path / "in").catalogue.images if i.split == "val" and i.ref.size > 100)
    assert isinstance(image.ref, ArchiveRef)
    with (tmp_path / "in" / VAL_TAR).open("r+b") as file:
        file.truncate(image.ref.offset + 100)
    with pytest.raises(UnreadableImage, match=rf"^100 of {image.ref.size} bytes: the file is truncated$"):
        RawFiles(tmp_path / "in", tmp_path).read(image.ref)


def without(name: str) -> Callable[[Path, Path], None]:
    return lambda root, _: (root / name).unlink()


def cut(name: str, part: float) -> Callable[[Path, Path], None]:
    return lambda root, _: (root / name).write_bytes(
        (root / name).read_bytes()[: int(part * (root / name).stat().st_size)]
    )


def without_end_mark(root: Path, _: Path) -> None:
    with tarfile.open(root / VAL_TAR) as tar:
        last = tar.getmembers()[-1]
    with (root / VAL_TAR).open("r+b") as file:
        file.truncate(last.offset_data + -(-last.size // 512) * 512)


def truth_of(truth: list[object]) -> Callable[[Path, Path], None]:
    return lambda root, _: write_devkit(root, meta_mat(SYNSETS), truth)


def train_of(wnids: list[str]) -> Callable[[Path, Path], None]:
    tars = [(f"{wnid}.tar", tar_of([("1.JPEG", b"")])) for wnid in wnids]
    return lambda root, _: (root / TRAIN_TAR).write_bytes(tar_of(tars))


def train_with(tar: bytes) -> Callable[[Path, Path], None]:
    tars = [(f"{wnid}.tar", tar) for wnid in WNIDS]
    return lambda root, _: (root / TRAIN_TAR).write_bytes(tar_of(tars))


def linked_tar() -> bytes:
    data = bytearray(tar_of([("1.JPEG", b"")]))
    data[156:157] = tarfile.SYMTYPE
    data[148:156] = b"%06o\0 " % (256 + sum(data[:148]) + sum(data[156:512]))
    return bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without(DEVKIT), rf"has train, but no val split: .*/{DEVKIT} is missing; .* image-net\.org"),
        (without(TRAIN_TAR), rf"/{TRAIN_TAR} is missing"),
        (without(VAL_TAR), rf"/{VAL_TAR} is missing"),
        (cut(TRAIN_TAR, 0.6), rf"/{TRAIN_TAR} is truncated or not a tar: neither header nor end mark"),
        (cut(VAL_TAR, 0.6), rf"/{VAL_TAR} is truncated or not a tar"),
        (cut(VAL_TAR, 0), rf"/{VAL_TAR} is truncated or not a tar: empty file"),
        (without_end_mark, rf"/{VAL_TAR} is truncated or not a tar: neither header nor end mark at byte"),
        (cut(DEVKIT, 0.5), rf"/{DEVKIT} is truncated or not a \.tar\.gz"),
        (truth_of([1, 2, 3]), rf"/{VAL_TAR} holds 43 images, but the ground truth in {DEVKIT} is of 3"),
        (truth_of([1, 2, 4] + [1] * 40), r"line 3 of .*ground_truth\.txt is '4', the id of none of its 3 classes"),
        (
            lambda root, _: write_devkit(root, b"MATLAB 5.0", []),
            rf"/{DEVKIT}: data/meta\.mat is not a table of synsets",
        ),
        (train_of(WNIDS[1:]), rf"class '{WNIDS[0]}' is not in .*/{TRAIN_TAR}, although {DEVKIT} lists it"),
        (
            train_of([*WNIDS, "n99999999"]),
            rf"class 'n99999999' in .*/{TRAIN_TAR} is unknown: {DEVKIT} does not list it",
        ),
        (train_with(tar_of([])), rf"class '{WNIDS[0]}' has no image in the train split"),
        (train_with(tar_of([("1.JPEG", b"")])[:512]), rf"/{TRAIN_TAR}/{WNIDS[0]}\.tar is truncated or not a tar"),
        (
            train_with(tar_of([("1.JPEG", b"x" * 9000)])[:1024]),
            rf"/{WNIDS[0]}\.tar is truncated or not a tar: unexpected",
        ),
        (train_with(b"not a tar" * 100), rf"/{TRAIN_TAR}/{WNIDS[0]}\.tar is truncated or not a tar"),
        (train_with(linked_tar()), r"'1\.JPEG' is a link, a folder or sparse, not a plain file"),
        (train_with(tar_of([("1.JPEG", b""), ("1.JPEG", b"")])), rf"image 'train/{WNIDS[0]}/1\.JPEG' is there twice"),
    ],
)
def test_incomplete_archives_are_said(
    wnid_folders: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], message: str
) -> None:
    write_ilsvrc(wnid_folders, tmp_path / "in")
    spoil(tmp_path / "in", wnid_folders)
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / "in")
    assert "\n" not in str(caught.value)


def test_kaggles_folder_itself_is_taken_with_its_lists_in_it_or_beside_it(wnid_folders: Path, tmp_path: Path) -> None:
    write_kaggle(wnid_folders, tmp_path / "in")
    expected = contents(opened(wnid_folders))
    assert contents(opened(tmp_path / "in")) == expected
    assert contents(opened(tmp_path / "in" / "ILSVRC")) == expected
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (tmp_path / "in" / name).rename(tmp_path / "in" / "ILSVRC" / name)
    assert contents(opened(tmp_path / "in" / "ILSVRC")) == expected


def with_line(name: str, line: str) -> Callable[[Path, Path], None]:
    def add(root: Path, _: Path) -> None:
        with (root / name).open("a") as file:
            file.write(f"{line}\n")

    return add


def without_first_line(name: str) -> Callable[[Path, Path], None]:
    return lambda root, _: (root / name).write_text((root / name).read_text().split("\n", 1)[1])


SOLUTION, MAPPING, CLS_LOC = "LOC_val_solution.csv", "LOC_synset_mapping.txt", "ILSVRC/Data/CLS-LOC"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without(SOLUTION), rf"/{SOLUTION} is missing; .*\(from Kaggle's"),
        (
            lambda root, _: (root / CLS_LOC / "val").rename(root / "v"),
            rf"/{CLS_LOC}/val is missing; it is in Kaggle's",
        ),
        (
            lambda root, _: (root / CLS_LOC / "train").rename(root / "t"),
            rf"/{CLS_LOC}/train is missing; .*--splits val$",
        ),
        (
            without(f"{CLS_LOC}/val/ILSVRC2012_val_00000007.JPEG"),
            r"'ILSVRC2012_val_00000007.JPEG' is not in .*/val, although",
        ),
        (
            lambda root, _: (root / CLS_LOC / "val" / "new.JPEG").touch(),
            rf"'new\.JPEG' in .*/val is unknown: .*/{SOLUTION} does not",
        ),
        (
            with_line(SOLUTION, "x,n99999999 1 2 3 4"),
            r"line 45 has class 'n99999999', which .*mapping\.txt does not list",
        ),
        (with_line(SOLUTION, "x"), r"line 45 is 'x'; an image id and its class should be there"),
        (without_first_line(SOLUTION), r"does not begin with the line ImageId,PredictionString"),
        (with_line(MAPPING, "n99999999 unicorn"), rf"class 'n99999999' is not in .*/{CLS_LOC}/train, although"),
        (with_line(MAPPING, "n99999999"), r"line 4 is 'n99999999'; a class id, ' ' and a name should be there"),
        (without_first_line(MAPPING), rf"class '{WNIDS[0]}' in .*/{CLS_LOC}/train is unknown"),
    ],
)
def test_an_incomplete_kaggle_folder_is_said(
    wnid_folders: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], message: str
) -> None:
    write_kaggle(wnid_folders, tmp_path / "in")
    spoil(tmp_path / "in", wnid_folders)
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "in")


def unpack(archive: str, target: str) -> Callable[[Path, Path], None]:
    """Unpack one of the archives, and remove it."""

    def step(root: Path, _: Path) -> None:
        with tarfile.open(root / archive) as tar:
            tar.extractall(root / target, filter="data")
        (root / archive).unlink()

    return step


def class_folders_of_train(root: Path, folders: Path) -> None:
    shutil.copytree(folders / "train", root / "train")
    (root / TRAIN_TAR).unlink()


def first_class_unpacked(root: Path, folders: Path) -> None:
    shutil.copytree(folders / "train" / WNIDS[0], root / "train" / WNIDS[0])
    (root / "train" / f"{WNIDS[0]}.tar").unlink()


def last_class_unpacked_in_part(root: Path, _: Path) -> None:
    (root / "train" / WNIDS[-1]).mkdir()
    (root / "train" / WNIDS[-1] / "part.JPEG").touch()


def devkit_data_only(root: Path, _: Path) -> None:
    (root / DEVKIT.removesuffix(".tar.gz") / "data").rename(root / "data")


def kaggles_lists(root: Path, folders: Path) -> None:
    write_kaggle(folders, root / "kaggle")
    for name in (SOLUTION, MAPPING):
        (root / "kaggle" / name).rename(root / name)
    shutil.rmtree(root / "kaggle")
    (root / DEVKIT).unlink()


FLAT_VAL, UNPACKED_DEVKIT = unpack(VAL_TAR, "val"), unpack(DEVKIT, ".")
HALF_UNPACKED = {
    "train in class folders": [class_folders_of_train],
    "train in class tars": [unpack(TRAIN_TAR, "train")],
    "train in class tars and folders": [unpack(TRAIN_TAR, "train"), first_class_unpacked, last_class_unpacked_in_part],
    "val side by side": [FLAT_VAL],
    "devkit unpacked": [UNPACKED_DEVKIT],
    "only the devkit's data": [UNPACKED_DEVKIT, devkit_data_only],
    "all unpacked": [class_folders_of_train, FLAT_VAL, UNPACKED_DEVKIT],
    "Kaggle's lists": [class_folders_of_train, FLAT_VAL, kaggles_lists],
}


@pytest.mark.parametrize("steps", HALF_UNPACKED.values(), ids=HALF_UNPACKED)
def test_half_unpacked_archives_are_read(
    wnid_folders: Path, tmp_path: Path, steps: list[Callable[[Path, Path], None]]
) -> None:
    write_ilsvrc(wnid_folders, tmp_path / "in")
    for step in steps:
        step(tmp_path / "in", wnid_folders)
    source = opened(tmp_path / "in")
    assert contents(source) == contents(opened(wnid_folders))
    assert source.catalogue.classes == tuple(ClassEntry(wnid, WORDS[wnid]) for wnid in WNIDS)


@pytest.mark.parametrize("target", ["val", "."])
def test_val_images_with_the_devkit_are_a_data_set_of_their_own(
    wnid_folders: Path, tmp_path: Path, target: str
) -> None:
    write_ilsvrc(wnid_folders, tmp_path / "in")
    (tmp_path / "in" / TRAIN_TAR).unlink()
    expected = contents(open_source(wnid_folders, SourceOptions(splits=("val",))))
    missing = rf"has val, but no train split: .*/{TRAIN_TAR} is missing; .*image-net\.org"
    for step in (lambda *_: None, unpack(VAL_TAR, target)):
        step(tmp_path / "in", wnid_folders)
        with pytest.raises(InputError, match=missing):
            opened(tmp_path / "in")
        assert contents(open_source(tmp_path / "in", SourceOptions(splits=("val",)))) == expected


def with_annotations(root: Path, folders: Path) -> None:
    (root / SOLUTION).unlink()
    (root / XML).mkdir(parents=True)
    for path, wnid in val_files(folders):
        boxes = "".join(f"<object><name>{wnid}</name><bndbox><xmin>1</xmin></bndbox></object>" for _ in range(2))
        page = f"<annotation><filename>{path.stem}</filename>{boxes}</annotation>"
        (root / XML / f"{path.stem}.xml").write_text(page)


def with_sorted_val(root: Path, folders: Path) -> None:
    shutil.rmtree(root / CLS_LOC / "val")
    shutil.copytree(folders / "val", root / CLS_LOC / "val")
    (root / SOLUTION).unlink()


def with_the_devkit(root: Path, folders: Path) -> None:
    write_ilsvrc(folders, root / "official")
    (root / "official" / DEVKIT).rename(root / DEVKIT)
    shutil.rmtree(root / "official")
    (root / SOLUTION).unlink()
    (root / MAPPING).unlink()


@pytest.mark.parametrize("options", [{"val_fraction": 0.5}, {"splits": ("train",)}])
@pytest.mark.parametrize(
    ("steps", "where"),
    [([], VAL_TAR), ([FLAT_VAL], "val"), ([unpack(VAL_TAR, ".")], r"ILSVRC2012_val_\*")],
    ids=["packed", "folder", "input itself"],
)
def test_val_images_without_labels_are_named_and_counted_where_val_is_from_elsewhere(
    wnid_folders: Path, tmp_path: Path, steps: list[Callable[[Path, Path], None]], where: str, options: dict
) -> None:
    root = tmp_path / "in"
    write_ilsvrc(wnid_folders, root)
    (root / DEVKIT).unlink()
    for step in steps:
        step(root, wnid_folders)
    source = open_source(root, SourceOptions(**options))
    assert len(source.ignored) == 1
    assert re.fullmatch(rf"{where} \(43 images without labels: {root / DEVKIT} is missing\)", source.ignored[0])
    assert source.skipped["val images without labels"] == 43
    assert {image.canonical_name.split("/")[0] for image in source.catalogue.images} == {"train"}


XML = "ILSVRC/Annotations/CLS-LOC/val"


@pytest.mark.parametrize("change", [with_annotations, with_sorted_val, with_the_devkit])
@pytest.mark.parametrize("inner", [".", "ILSVRC", CLS_LOC])
def test_kaggles_folder_without_its_csv_is_read(
    wnid_folders: Path, tmp_path: Path, change: Callable[[Path, Path], None], inner: str
) -> None:
    write_kaggle(wnid_folders, tmp_path / "in")
    change(tmp_path / "in", wnid_folders)
    source = opened(tmp_path / "in" / inner)
    assert contents(source) == contents(opened(wnid_folders))
    names = {wnid: wnid for wnid in WNIDS} if (inner, change) == (CLS_LOC, with_sorted_val) else WORDS  # class folders
    assert source.catalogue.classes == tuple(ClassEntry(wnid, names[wnid]) for wnid in WNIDS)


def test_kaggles_folder_without_the_names_of_classes_has_their_ids(wnid_folders: Path, tmp_path: Path) -> None:
    write_kaggle(wnid_folders, tmp_path / "in")
    (tmp_path / "in" / MAPPING).unlink()
    source = opened(tmp_path / "in")
    assert contents(source) == contents(opened(wnid_folders))
    assert [entry.name for entry in source.catalogue.classes] == WNIDS


def test_an_annotation_that_is_broken_or_of_another_class_is_said(wnid_folders: Path, tmp_path: Path) -> None:
    write_kaggle(wnid_folders, tmp_path / "in")
    with_annotations(tmp_path / "in", wnid_folders)
    path = tmp_path / "in" / XML / "ILSVRC2012_val_00000003.xml"
    path.write_text("<annotation>")
    with pytest.raises(InputError, match=rf"{path} cannot be read as XML"):
        opened(tmp_path / "in")
    path.write_text("<annotation><object><name>n99999999</name></object></annotation>")
    with pytest.raises(InputError, match=rf"{path} has class 'n99999999', which .*{MAPPING} does not list"):
        opened(tmp_path / "in")


ANNOTATIONS = "val/val_annotations.txt"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("words.txt"), r"/words\.txt is missing"),
        (
            without_first_line("words.txt"),
            rf"class '{SYNSETS[0][1]}' in .*/train is unknown: .*/words\.txt does not list it",
        ),
        (with_line(ANNOTATIONS, "x.JPEG\tn99999999\t0"), r"line 44 has class 'n99999999', which is not in .*/train"),
        (with_line(ANNOTATIONS, "x.JPEG"), r"line 44 has class '', which is not in .*/train"),
        (
            without("val/images/ILSVRC2012_val_00000007.JPEG"),
            r"'ILSVRC2012_val_00000007.JPEG' is not in .*/val/images, although",
        ),
        (without_first_line(ANNOTATIONS), r"'ILSVRC2012_val_00000001.JPEG' in .*/val/images is unknown"),
    ],
)
def test_an_incomplete_tiny_imagenet_is_said(
    wnid_folders: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], message: str
) -> None:
    write_tiny_imagenet(wnid_folders, tmp_path / "in")
    spoil(tmp_path / "in", wnid_folders)
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "in")


def test_tiny_imagenet_whose_val_was_sorted_into_class_folders_is_class_folders(
    wnid_folders: Path, tmp_path: Path
) -> None:
    write_tiny_imagenet(wnid_folders, tmp_path)
    for path, wnid in val_files(wnid_folders):
        (tmp_path / "val" / wnid).mkdir(exist_ok=True)
        (tmp_path / "val" / "images" / path.name).rename(tmp_path / "val" / wnid / path.name)
    (tmp_path / "val" / "images").rmdir()
    sources = {image.canonical_name for image in opened(tmp_path).catalogue.images}
    assert f"train/{WNIDS[0]}/images/blue-disc_000.JPEG" in sources
    assert len(sources) == len(opened(wnid_folders).catalogue.images)


def test_a_folder_that_fits_two_layouts_is_not_guessed_at(wnid_folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_ilsvrc(wnid_folders, root)
    (root / "train").mkdir()
    with pytest.raises(InputError, match=r"fits several layouts: choose one with --layout ilsvrc or folders$"):
        opened(root)
    assert contents(opened(root, "ilsvrc")) == contents(opened(wnid_folders))
    write_cifar10(root / "cifar-10-batches-py")
    with pytest.raises(InputError, match=r"--layout ilsvrc or cifar10 or folders$"):
        opened(root)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("ilsvrc", rf"/{TRAIN_TAR} is missing"),
        ("kaggle", r"has no ILSVRC/Data/CLS-LOC, as Kaggle's layout does"),
        ("tiny-imagenet", r"/train is missing"),
        ("parquet", r"has no train-\*\.parquet, nor has its folder data"),
        ("cifar10", r"has no batches\.meta and batches, nor a folder cifar-10-batches-py with them"),
    ],
)
def test_a_layout_that_is_named_but_not_there_is_said(tmp_path: Path, layout: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, layout)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_layout_with_its_own_val_split_takes_none_from_elsewhere(
    wnid_folders: Path, tmp_path: Path, layout: str
) -> None:
    WRITERS[layout](wnid_folders, tmp_path / "in")
    for options, name in (({"val_fraction": 0.1}, "--val-fraction"), ({"test_as_val": True}, "--test-as-val")):
        with pytest.raises(InputError, match=rf"has its own val split: leave {name} out"):
            open_source(tmp_path / "in", SourceOptions(layout, **options))


def test_a_layout_is_named_on_the_command_line(
    wnid_folders: Path, from_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kaggle(wnid_folders, tmp_path / "in")
    (tmp_path / "in" / "ILSVRC" / "Data" / "CLS-LOC" / "val").rename(tmp_path / "val")
    images = tmp_path / "in" / "ILSVRC" / "Data" / "CLS-LOC"
    (images / "val").symlink_to(wnid_folders / "val")
    build(images, tmp_path / "out", "--layout", "folders")
    assert folder_bytes(tmp_path / "out") == folder_bytes(from_folders)
    assert f"ignored in {images}: test\n" in capsys.readouterr().err
    assert main(["--layout", "kaggle", "--output", str(tmp_path / "new")]) == 2
    assert (
        capsys.readouterr().err == "build_shards: --layout needs --input: the embedded sample is drawn; leave it out\n"
    )


def test_a_quote_that_is_not_closed_is_said(
    wnid_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kaggle(wnid_folders, tmp_path / "in")
    solution = tmp_path / "in" / "LOC_val_solution.csv"
    lines = solution.read_text().splitlines()
    solution.write_text("\n".join([*lines[:3], '"' + lines[3], *lines[4:]]))
    assert main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 2
    assert f"{solution}, line {len(lines)} is not CSV: unexpected end of data" in capsys.readouterr().err
