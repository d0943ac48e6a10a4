"""Files with class names and labels, and their comparison with the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from errors import InputError
from preprocess.sources.catalogue import FileRef, Found, printable
from preprocess.sources.folders import list_images
from preprocess.sources.skipping import Skipped


def read_lines(path: Path) -> list[str]:
    """Read a text file; a byte-order mark, as Excel writes, is no part of it.

    Raises:
        InputError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the labels or names of this layout are in it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error


def read_names(path: Path, separator: str) -> dict[str, str]:
    """Read a file of class ids and names, one class a line.

    Raises:
        InputError: as `read_lines` says, or a line that is not an id, the separator and a name.
    """
    names = {}
    for number, line in enumerate(read_lines(path), start=1):
        name, found, words = line.partition(separator)
        if not (name and found):
            raise InputError(f"{path}, line {number} is {line!r}; a class id, {separator!r} and a name should be there")
        names[name] = words.strip()
    return names


def check_known(classes: Iterable[str], folder: Path, known: Iterable[str], listed: str) -> None:
    """Raise `InputError` for a class in `folder` that is not `known`, i.e. not listed in `listed`."""
    for name in sorted(set(classes) - set(known)):
        raise InputError(f"class {printable(name)!r} in {folder} is unknown: {listed} does not list it")


def check_same(classes: Iterable[str], folder: Path, known: Iterable[str], listed: str) -> None:
    """Raise `InputError` as `check_known`, and for a `known` class that is not in `folder`."""
    check_known(classes, folder, known, listed)
    for name in sorted(set(known) - set(classes)):
        raise InputError(f"class {printable(name)!r} is not in {folder}, although {listed} lists it: incomplete?")


def check_labels(path: Path, labels: Iterable[object], classes: int) -> None:
    """Raise `InputError` for a row of the container `path` whose label is not the number of a class."""
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < classes:
            raise InputError(f"{path}, row {row} has label {label!r}; use 0 to {classes - 1}")


def flat_val(root: Path, folder: Path, class_of: Mapping[str, str], listed: Path, skipped: Skipped) -> Iterator[Found]:
    """Yield the images of a val split in one flat folder; `class_of` maps their names to class ids, as `listed` does.

    Other files are counted in `skipped`.

    Raises:
        InputError: the folder holds other images than `class_of`, or cannot be listed.
    """
    files = list_images(folder, skipped)
    check_listed(files, folder, class_of, listed)
    prefix = folder.relative_to(root).as_posix()
    for name in files:
        yield "val", class_of[name], f"val/{class_of[name]}/{name}", FileRef(f"{prefix}/{name}")


def check_listed(files: Iterable[str], folder: Path, class_of: Mapping[str, str], listed: Path) -> None:
    """Raise `InputError` unless the images `files` of `folder` are those of `class_of`, which `listed` lists."""
    for name in sorted(set(files) ^ class_of.keys()):
        if name in class_of:
            raise InputError(f"image {name!r} is not in {folder}, although {listed} lists it: incomplete?")
        raise InputError(f"image {printable(name)!r} in {folder} is unknown: {listed} does not list it")
