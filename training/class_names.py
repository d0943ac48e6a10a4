"""Names of classes for people, from a file or from the table of ImageNet's wnids, and their numbers in ILSVRC-2012."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from errors import InputError
from preprocess.manifest import ClassEntry, parse_class_line

_WNID_TABLE = Path(__file__).with_name("wnid_names.tsv")


def name_classes(classes: Sequence[ClassEntry], file: Path | None = None) -> tuple[ClassEntry, ...]:
    """Return the classes with their names for people: that of `file`, else their own, else that of a known wnid.

    Class folders give a class its id as its name; such a name is replaced by the words that the devkit of ILSVRC-2012
    has for the wnid, which are the names in the official archives.

    Args:
        classes: in the order of the labels.
        file: a line for each class: its id, a tab (or a space, if the id has none), its name; a colon or a comma after
            the id is no part of either. It may have other classes too, and need not have all.

    Raises:
        InputError: the file cannot be read, a line is of another form, an id is there twice, or none is of `classes`.
    """
    named = {} if file is None else _read_names(file)
    if file is not None and named.keys().isdisjoint(entry.id for entry in classes):
        raise InputError(
            f"--class-names is {file}: it names none of the {len(classes)} classes, of which the first is "
            f"{classes[0].id!r}; use lines of a class id and its name"
        )
    known = _synsets()
    own = [known[entry.id].words if entry.name == entry.id in known else entry.name for entry in classes]
    return tuple(replace(entry, name=named.get(entry.id, name)) for entry, name in zip(classes, own, strict=True))


def unique_names(classes: Sequence[ClassEntry]) -> list[str]:
    """Return the name of each class, followed by its id where other classes have the same: "crane (n02012849)"."""
    times = Counter(entry.name for entry in classes)
    return [f"{entry.name} ({entry.id})" if times[entry.name] > 1 else entry.name for entry in classes]


def challenge_ids(classes: Sequence[ClassEntry]) -> list[int]:
    """Return the ILSVRC2012_ID of each class, 1 to 1000: the devkit's order, which is not that of the wnids.

    Raises:
        InputError: a class is not one of ILSVRC-2012.
    """
    ids: list[int] = []
    for label, entry in enumerate(classes):
        synset = _synsets().get(entry.id)
        if synset is None or synset.number is None:
            raise InputError(f"class {label} is {entry.id!r}: not in ILSVRC-2012; use a network of its wnids")
        ids.append(synset.number)
    return ids


class _Synset(NamedTuple):
    number: int | None
    """ILSVRC2012_ID; None for an ancestor of the classes."""
    words: str


@functools.cache
def _synsets() -> dict[str, _Synset]:
    lines = _WNID_TABLE.read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {wnid: _Synset(int(number) if number else None, words) for wnid, number, words in rows}


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
        class_id, name = parse_class_line(line)
        if not (class_id and name):
            raise InputError(
                f"--class-names is {file}: line {number} is {line!r}; use a class id, a tab or a space, and its name"
            )
        if class_id in names:
            raise InputError(f"--class-names is {file}: line {number} names {class_id!r} again; use one line for each")
        names[class_id] = name
    return names
