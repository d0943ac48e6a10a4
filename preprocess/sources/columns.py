"""Columns of tables of images: which one holds the images, which one the labels, and the class ids of labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from errors import InputError
from preprocess.sources.catalogue import printable

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
FILE_COLUMNS = ("file_name", "filename", "file", "path", "filepath", "image_path", "image_name", "image_id", "id")
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "cls",
    "target",
    "category",
    "class_name",
    "class_id",
    "label_name",
    "breed",
)
_WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")


def find_column(there: Collection[str], known: Sequence[str]) -> str | None:
    """Return the first of the `known` names that a table has, in any case; None if it has none."""
    by_name = {name.lower().strip(): name for name in there}
    return next((by_name[name] for name in known if name in by_name), None)


def choose_column(there: Collection[str], option: str, given: str | None, known: Sequence[str], where: str) -> str:
    """Return the column that `option` names, or else the first of the `known` ones.

    Raises:
        InputError: the table `where` has no such column.
    """
    column = find_column(there, known) if given is None else given
    if column is None or column not in there:
        listed = ", ".join(map(printable, there))
        missing = f"column {given!r}" if given else f"column {known[0]!r} or {known[1]!r}"
        raise InputError(f"{where} has no {missing}: it has {listed}; use {option} with one of them")
    return column


def class_ids(labels: Iterable[int | str]) -> dict[int | str, str]:
    """Return the class id of each different label: numbers get leading zeros, so that their order as text is theirs."""
    different = set(labels)
    if all(str(label).isdecimal() for label in different):
        width = max((len(str(int(label))) for label in different), default=0)
        return {label: f"{int(label):0{width}d}" for label in different}
    return {label: str(label) for label in different}


def wnids_of(images: Iterable[tuple[int | str, str]]) -> dict[int | str, str] | None:
    """Return the wnid of each label, from pairs of a label and a file name; None unless it is in all of its names.

    All labels then have different wnids.
    """
    there: dict[int | str, set[str]] = {}
    for label, name in images:
        found = set(_WNID.findall(name))
        there.setdefault(label, set()).update(found if len(found) == 1 else {""})
    wnids = {label: next(iter(found)) for label, found in there.items() if len(found) == 1}
    different = set(wnids.values())
    return wnids if "" not in different and len(different) == len(there) else None
