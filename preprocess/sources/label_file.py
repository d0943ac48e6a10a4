"""A folder of images and a file with their labels (`--labels`): CSV, TSV, or a list.

    image,label,split          a header; the columns are found by name, and a column of splits is used if there is one;
                               they are separated by commas, semicolons or tabs
    images/1.jpg 17            or no header: a name and a label on each line, as in the lists of Caffe

An image is named by its path in the input folder or next to the file, or only by its file name, with or without ending.
Images that the file does not name are skipped. The canonical name is <split>/<class>/<path>, or <class>/<path>.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from errors import InputError
from preprocess.sources.catalogue import IMAGE_ENDINGS, SPLITS, FileRef, Found, printable
from preprocess.sources.columns import (
    FILE_COLUMNS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    choose_column,
    class_ids,
    find_column,
)
from preprocess.sources.folders import walk_images
from preprocess.sources.labels import read_lines
from preprocess.sources.skipping import Skipped, ending_of
from preprocess.sources.source import Listing, SourceOptions
from preprocess.sources.splits import split_of

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_TABLES = {".csv": ",;\t", ".tsv": "\t,;"}
"""Ending of a table -> separators, the usual one first: Excel writes semicolons in half of the world."""
_NOT_NAMED = "images that the file of labels does not name"


class _Line(NamedTuple):
    number: int
    image: str
    label: str
    split: str


def read(root: Path, path: Path, options: SourceOptions) -> Listing:
    """List the images that the file `path` names.

    Raises:
        InputError: the file cannot be read or has no such columns, or an image of it is not in the input folder, is
            there twice, or has no label or an unknown split.
    """
    lines = list(_read_table(path, options) if path.suffix.lower() in _TABLES else _read_list(path))
    if not lines:
        raise InputError(f"--labels is {path}: it names no image; use lines of an image and its label")
    skipped = Skipped()
    files = _Files.below(root, path, skipped)
    is_split = any(line.split for line in lines)
    ids = class_ids(line.label for line in lines)
    found: dict[str, list[Found]] = {split: [] for split in SPLITS}
    named: dict[str, int] = {}
    for line in lines:
        where = f"{path}, line {line.number}"
        file = files.find(line.image, where)
        if file in named:
            raise InputError(f"{where} names {printable(file)!r} again, after line {named[file]}; remove one of them")
        named[file] = line.number
        split = split_of(line.split) if is_split else "train"
        if split is None or not line.label:
            problem = f"split {line.split!r}" if line.label else "no label"
            raise InputError(f"{where} has {problem}; use a label, and a split such as train, val or test")
        class_id = ids[line.label]
        name = f"{f'{split}/' if is_split else ''}{class_id}/{file}"
        found[split].append((split, class_id, name, FileRef(file)))
    if path.resolve().is_relative_to(root.resolve()):
        skipped -= Skipped([ending_of(path.name)])  # the file of labels itself
    if len(files.paths) > len(named):
        skipped[_NOT_NAMED] = len(files.paths) - len(named)
    there = {split: images for split, images in found.items() if images}
    return Listing({name: name for name in ids.values()}, there, skipped=skipped, is_split=is_split)


def _read_table(path: Path, options: SourceOptions) -> Iterator[_Line]:
    lines = read_lines(path)
    delimiter = max(_TABLES[path.suffix.lower()], key=(lines or [""])[0].count)  # the first one of equal numbers
    rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        there = rows.fieldnames or ()
        if any(name.strip().lower().endswith(IMAGE_ENDINGS) for name in there):
            raise InputError(
                f"{path}, line 1 is {lines[0]!r}: it names an image, not columns; use a first line such as "
                f"{delimiter.join(('image', 'label'))!r}, separated by {_SEPARATORS[delimiter]} as the others"
            )
        known = (*FILE_COLUMNS, *IMAGE_COLUMNS)
        image = choose_column(there, "--image-column", options.image_column, known, str(path))
        label = choose_column(there, "--label-column", options.label_column, LABEL_COLUMNS, str(path))
        split = find_column(there, SPLIT_COLUMNS)
        for row in rows:
            of_split = row[split] if split else ""
            yield _Line(rows.line_num, row[image] or "", (row[label] or "").strip(), of_split or "")
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num} cannot be read as a table: {error}") from error


def _read_list(path: Path) -> Iterator[_Line]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            image, _, label = line.strip().replace("\t", " ").rpartition(" ")
            separator = _table_separator(line)
            if separator and not image.lower().endswith(IMAGE_ENDINGS):
                header = separator.join(("image", "label"))
                raise InputError(
                    f"{path}, line {number} is {line!r}: it is separated by {_SEPARATORS[separator]}; use a space or "
                    f"a tab between image and label, or a .csv whose first line is {header!r}"
                )
            if not image:
                raise InputError(f"{path}, line {number} is {line!r}; use an image, a space or a tab, and its label")
            yield _Line(number, image.strip(), label, "")


def _table_separator(line: str) -> str | None:
    """Return the comma or semicolon that separates a line of a list; None for a list as it should be."""
    for separator in ",;":
        image, found, _ = line.strip().rpartition(separator)
        if found and (len(line.split()) == 1 or image.strip().lower().endswith(IMAGE_ENDINGS)):
            return separator
    return None


@dataclass(frozen=True)
class _Files:
    """The images of the input folder by all names that a file of labels may have for them."""

    root: Path
    paths: set[str]
    prefix: str
    """Of the folder with the file of labels, relative to the input folder; empty outside of it."""
    by_name: dict[str, list[str]]
    """File name with and without ending -> paths."""

    @staticmethod
    def below(root: Path, labels: Path, skipped: Skipped) -> _Files:
        paths, _ = walk_images(root, "", skipped)
        by_name: dict[str, list[str]] = {}
        for path in sorted(paths):
            pure = PurePosixPath(path)
            for name in {pure.name, pure.stem, path.removesuffix(pure.suffix)}:
                by_name.setdefault(name, []).append(path)
        folder = labels.resolve().parent
        inside = folder.is_relative_to(root.resolve())
        prefix = folder.relative_to(root.resolve()).as_posix() if inside else "."
        return _Files(root, set(paths), "" if prefix == "." else f"{prefix}/", by_name)

    def find(self, image: str, where: str) -> str:
        """Return the path of the image that a line names; raise `InputError` if there is none, or several."""
        name = image.strip().removeprefix("./")
        for path in (name, f"{self.prefix}{name}"):
            if path in self.paths:
                return path
        found = self.by_name.get(name) or self.by_name.get(f"{self.prefix}{name}") or []
        if len(found) == 1:
            return found[0]
        problem = f"may be {' or '.join(map(printable, found[:2]))}" if found else f"is not in {self.root}"
        raise InputError(f"{where} names image {name!r}, which {problem}; use paths in the input folder")
