"""Tiny-ImageNet, unpacked.

    IN/train/<wnid>/images/*.JPEG   IN/val/images/*.JPEG   IN/val/val_annotations.txt   IN/words.txt

Its test split has no labels and is ignored.
"""

from __future__ import annotations

from pathlib import Path

from errors import InputError
from preprocess.sources.folders import class_images, list_classes
from preprocess.sources.labels import check_known, flat_val, read_lines, read_names
from preprocess.sources.skipping import Skipped
from preprocess.sources.source import Listing

_ANNOTATIONS = "val/val_annotations.txt"


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    # Many move the val images into class folders, as in train, and leave the annotations: those are class folders.
    return (root / _ANNOTATIONS).is_file() and (root / "val" / "images").is_dir()


def read(root: Path) -> Listing:
    """List the images of Tiny-ImageNet's layout.

    Raises:
        InputError: a file or folder of the layout is missing, or images, labels and names do not fit together.
    """
    train, annotations = root / "train", root / _ANNOTATIONS
    if not train.is_dir():
        raise InputError(f"{train} is missing: Tiny-ImageNet's layout has <wnid>/images there")
    words, skipped = read_names(root / "words.txt", "\t"), Skipped()
    classes = list_classes(train, "train/", skipped)
    check_known(classes, train, words, str(root / "words.txt"))
    class_of = {}
    for number, line in enumerate(read_lines(annotations), start=1):
        name, _, rest = line.partition("\t")
        class_of[name] = rest.partition("\t")[0]  # a box follows
        if class_of[name] not in classes:
            raise InputError(f"{annotations}, line {number} has class {class_of[name]!r}, which is not in {train}")
    train_images = (
        (split, name, file.replace(f"/{name}/images/", f"/{name}/", 1), ref)
        for split, name, file, ref in class_images("train", classes)
    )
    val_images = flat_val(root, root / "val" / "images", class_of, annotations, skipped)
    names = {name: words[name] for name in classes}
    ignored = ("test",) if (root / "test").is_dir() else ()
    return Listing(names, {"train": train_images, "val": val_images}, ignored=ignored, skipped=skipped)
