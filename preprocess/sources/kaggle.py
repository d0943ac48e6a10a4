"""ImageNet as on Kaggle ("ImageNet Object Localization Challenge"), unpacked.

    IN/ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG   IN/ILSVRC/Data/CLS-LOC/val/*.JPEG   (its test has no labels)
    IN/LOC_val_solution.csv   IN/LOC_synset_mapping.txt

The input folder may also be `ILSVRC` itself, with the two files in it or next to it.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from errors import InputError
from preprocess.sources.folders import class_images, list_classes
from preprocess.sources.labels import check_same, flat_val, read_lines, read_names
from preprocess.sources.skipping import Skipped
from preprocess.sources.source import Listing

_IMAGES = "Data/CLS-LOC"
_SOLUTION = "LOC_val_solution.csv"
_MAPPING = "LOC_synset_mapping.txt"


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    return _images(root) is not None


def read(root: Path) -> Listing:
    """List the images of Kaggle's layout.

    Raises:
        InputError: a file or folder of the layout is missing, or images, labels and names do not fit together.
    """
    images = _images(root)
    if images is None:
        raise InputError(f"input folder {root} has no ILSVRC/{_IMAGES}, as Kaggle's layout does")
    for split in ("train", "val"):
        if not (images / split).is_dir():
            raise InputError(f"{images / split} is missing: Kaggle's layout has train and val there")
    mapping, solution = _label_file(root, _MAPPING), _label_file(root, _SOLUTION)
    names, skipped = read_names(mapping, " "), Skipped()
    train = list_classes(images / "train", "train/", skipped)
    check_same(train, images / "train", names, str(mapping))
    class_of = _read_solution(solution, names, mapping)
    train_images = class_images("train", train, f"{images.relative_to(root).as_posix()}/")
    val_images = flat_val(root, images / "val", class_of, solution, skipped)
    return Listing(names, {"train": train_images, "val": val_images}, skipped=skipped)


def _images(root: Path) -> Path | None:
    return next((path for path in (root / "ILSVRC" / _IMAGES, root / _IMAGES) if path.is_dir()), None)


def _label_file(root: Path, name: str) -> Path:
    # If `root` is ILSVRC itself, the archive has put the file next to it. An absolute path, for `.` has no parent.
    above = root.resolve().parent / name
    return above if not (root / name).exists() and not (root / "ILSVRC").is_dir() and above.exists() else root / name


def _read_solution(path: Path, classes: Collection[str], mapping: Path) -> dict[str, str]:
    """Read `ImageId,PredictionString`: the class id is the prediction's first word, boxes follow."""
    rows = csv.reader(read_lines(path), strict=True)
    class_of = {}
    try:
        if next(rows, None) != ["ImageId", "PredictionString"]:
            raise InputError(f"{path} does not begin with the line ImageId,PredictionString")
        listed = [(rows.line_num, row) for row in rows]
    except csv.Error as error:  # a quote that is not closed: the rest of the file would be one word
        raise InputError(f"{path}, line {rows.line_num} is not CSV: {error}") from error
    for number, row in listed:
        words = row[1].split() if len(row) == 2 else []
        if not words:
            raise InputError(f"{path}, line {number} is {','.join(row)!r}; an image id and its class should be there")
        if words[0] not in classes:
            raise InputError(f"{path}, line {number} has class {words[0]!r}, which {mapping} does not list")
        class_of[f"{row[0]}.JPEG"] = words[0]
    return class_of
