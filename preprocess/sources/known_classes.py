"""The classes of another data set, so that images of some of them get the labels that a network was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from errors import InputError
from preprocess.manifest import parse_class_line, parse_manifest
from preprocess.sources.catalogue import Found, printable
from preprocess.sources.labels import read_lines
from preprocess.sources.source import Listing


def read_classes(path: Path) -> dict[str, str]:
    """Return class id -> name of the data set in the folder `path`, or of a file with an id and perhaps a name a line.

    Raises:
        InputError: it cannot be read, an id is there twice, or the ids of a file are not sorted.
    """
    if path.is_dir():
        return {entry.id: entry.name for entry in parse_manifest(path).classes}
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        class_id, name = parse_class_line(line)
        if not class_id or class_id <= max(names, default=""):
            raise InputError(
                f"--classes is {path}: line {number} is {line!r}; use a class id and perhaps its name on each line, "
                "sorted by id, without repetitions"
            )
        names[class_id] = name or class_id
    if not names:
        raise InputError(f"--classes is {path}: it is empty; use a class id on each line")
    return names


def with_classes(listing: Listing, path: Path, root: Path) -> Listing:
    """Return the listing with the classes of `path`; those found are recognised by id, by name, or by number.

    A number, as in ImageNet-V2's folders, is a position in the list.

    Raises:
        InputError: as `read_classes`, or a class of the listing is not in it.
    """
    names = read_classes(path)
    ids = list(names)
    by_name = {name: class_id for class_id, name in names.items()}
    numbers = [name for name in listing.names if name.isdecimal() and int(name) < len(ids)]
    by_number = {name: ids[int(name)] for name in numbers}  # also with zeros before them
    tables: tuple[Mapping[str, str], ...] = ({class_id: class_id for class_id in ids}, by_name, by_number)
    known = next((table for table in tables if listing.names.keys() <= table.keys()), None)
    if known is None:
        other = min(listing.names.keys() - names.keys())
        raise InputError(
            f"--classes is {path}: class {printable(other)!r} of {root} is none of its {len(ids)}, "
            f"of which the first is {ids[0]!r}; use the list that the classes are from"
        )
    found = {split: _renamed(images, known) for split, images in listing.found.items()}
    return replace(listing, names=names, found=found)


def _renamed(images: Iterable[Found], known: Mapping[str, str]) -> Iterator[Found]:
    return ((split, known[class_id], name, ref) for split, class_id, name, ref in images)
