"""Class names for people: from a file, or from the table of ImageNet's wnids; with the id where two are the same."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from errors import InputError
from preprocess.manifest import ClassEntry

_WNID_TABLE = Path(__file__).with_name("wnid_names.tsv")


def name_classes(classes: Sequence[ClassEntry], file: Path | None = None) -> tuple[ClassEntry, ...]:
    """Return the classes with their names for people: that of `file`, else their own, else that of a known wnid.

    Class folders give a class its id as its name; such a name is replaced by the words that the devkit of ILSVRC-2012
    has for the wnid, which are the names in the official archives.

    Args:
        classes: in the order of the labels.
        file: a line for each class: its id, a tab (or a space, if the id has none), its name. It may have other classes
            too, and need not have all.

    Raises:
        InputError: the file cannot be read, a line is of another form, an id is there twice, or none is of `classes`.
    """
    named = {} if file is None else _read_names(file)
    if file is not None and named.keys().isdisjoint(entry.id for entry in classes):
        raise InputError(
            f"--class-names is {file}: it names none of the {len(classes)} classes, of which the first is "
            f"{classes[0].id!r}; use lines of a class id and its name"
        )
    known = _wnid_names()
    own = [known.get(entry.id, entry.name) if entry.name == entry.id else entry.name for entry in classes]
    return tuple(replace(entry, name=named.get(entry.id, name)) for entry, name in zip(classes, own, strict=True))


def unique_names(classes: Sequence[ClassEntry]) -> list[str]:
    """Return the name of each class, followed by its id where other classes have the same: "crane (n02012849)"."""
    times = Counter(entry.name for entry in classes)
    return [f"{entry.name} ({entry.id})" if times[entry.name] > 1 else entry.name for entry in classes]


@functools.cache
def _wnid_names() -> dict[str, str]:
    lines = _WNID_TABLE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def _read_names(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"--class-names is {file}: it cannot be read: {reason}; use a text file") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        class_id, _, name = (part.strip() for part in line.partition("\t" if "\t" in line else " "))
        if not (class_id and name):
            raise InputError(
                f"--class-names is {file}: line {number} is {line!r}; use a class id, a tab or a space, and its name"
            )
        if class_id in names:
            raise InputError(f"--class-names is {file}: line {number} names {class_id!r} again; use one line for each")
        names[class_id] = name
    return names
