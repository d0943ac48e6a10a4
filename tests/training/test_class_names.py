"""Class names in predictions, reports and exports."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from commands import run_command

from errors import InputError
from preprocess.manifest import ClassEntry
from preprocess.sources.known_classes import read_classes
from training.class_names import name_classes, unique_names

WNIDS = ("n02012849", "n03028079", "n03126707")
"""The bird, a church, and the machine: two of them are cranes."""


@pytest.fixture(scope="module")
def wnid_folders(checkpoint: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The shards and the checkpoint, as if the class folders had been named by wnids."""
    classes = [{"id": wnid, "name": wnid} for wnid in WNIDS]
    folder = tmp_path_factory.mktemp("wnids")
    for source, name, page_name in (
        (tiny_shards, "shards", "manifest.json"),
        (checkpoint, "trained", "checkpoint.json"),
    ):
        shutil.copytree(source, folder / name)
        page = json.loads((folder / name / page_name).read_text())
        (page if name == "shards" else page["data"])["classes"] = classes
        (folder / name / page_name).write_text(json.dumps(page))
    return folder / "shards", folder / "trained"


def test_wnids_are_named_and_the_same_names_get_their_ids(
    wnid_folders: tuple[Path, Path], raw_folder: Path, tmp_path: Path
) -> None:
    shards, trained = wnid_folders
    done = run_command(
        *("training.evaluate", "--checkpoint", trained, "--data", shards, "--output", tmp_path / "report")
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    named = [(entry["id"], entry["name"]) for entry in report["per_class"]]
    assert named == list(zip(WNIDS, ("crane", "church, church building", "crane"), strict=True))
    page = (tmp_path / "report" / "report.html").read_text()
    # In the table, the confusion matrix and the cards.
    for name in ("crane (n02012849)", "church, church building", "crane (n03126707)"):
        assert page.count(f">{name}<") > 2
    assert ">crane<" not in page
    photo = next((raw_folder / "val" / "red-square").glob("*.JPEG"))
    done = run_command("training.predict", "--checkpoint", trained, photo)
    assert done.returncode == 0, done.stderr
    names = {line.split(maxsplit=1)[1] for line in done.stdout.splitlines()[1:]}
    assert names == {"crane (n02012849)", "church, church building", "crane (n03126707)"}


def test_a_file_of_names_goes_before_all_others(wnid_folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, trained = wnid_folders
    file, exported = tmp_path / "names.txt", tmp_path / "network.safetensors"
    file.write_text("n02012849 kurki\nn03126707\tlifting crane\n\nn00000001 not of this data set\n")
    done = run_command(
        *("training.export", "--checkpoint", trained, "--class-names", file),
        *("--format", "safetensors", "--output", exported),
    )
    assert done.returncode == 0, done.stderr
    content = exported.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    names = [entry["name"] for entry in json.loads(header["__metadata__"]["classes"])]
    assert names == ["kurki", "church, church building", "lifting crane"]
    file.write_text("tench\n")
    done = run_command("training.predict", "--checkpoint", trained, "--class-names", file, tmp_path / "photo.jpg")
    message = f"--class-names is {file}: line 1 is 'tench'; use a class id, a tab or a space, and its name"
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a first\na second\n", "line 2 names 'a' again; use one line for each"),
        (b"other name\n", "it names none of the 2 classes, of which the first is 'a'"),
        (b"", "it names none of the 2 classes"),
        (b"a \xff\n", "it cannot be read: not UTF-8; use a text file"),
        (None, "it cannot be read: No such file or directory; use a text file"),
    ],
)
def test_a_file_that_names_nothing_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=f"^--class-names is {file}: {message}"):
        name_classes([ClassEntry("a", "a"), ClassEntry("b c", "b c")], file)


def test_names_of_the_data_set_stay_and_ids_may_have_spaces(tmp_path: Path) -> None:
    classes = [ClassEntry("n02012849", "Kranich"), ClassEntry("white stork", "white stork"), ClassEntry("n9", "n9")]
    assert name_classes(classes) == tuple(classes)
    (tmp_path / "names.txt").write_text("\ufeffwhite stork\tWeißstorch\nn9\tWeißstorch\n", encoding="utf-8")
    named = name_classes(classes, tmp_path / "names.txt")
    assert unique_names(named) == ["Kranich", "Weißstorch (white stork)", "Weißstorch (n9)"]


@pytest.mark.parametrize(
    "separator", ["\t", " ", " : ", ": ", ":", ", ", ",", "\t: ", " \t"], ids=lambda separator: repr(separator)
)
def test_the_separator_after_a_wnid_is_no_part_of_the_name(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text(f"n01440764{separator}tench, Tinca tinca\n")
    named = name_classes([ClassEntry("n01440764", "n01440764")], file)
    assert [entry.name for entry in named] == ["tench, Tinca tinca"]
    assert read_classes(file) == {"n01440764": "tench, Tinca tinca"}


def test_ids_keep_their_own_colons_and_commas(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("Pepper,_bell\nfox: a fox\nred fox\tVulpes: vulpes\n")
    assert read_classes(file) == {"Pepper,_bell": "Pepper,_bell", "fox": "a fox", "red fox": "Vulpes: vulpes"}
