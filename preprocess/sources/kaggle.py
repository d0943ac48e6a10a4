"""ImageNet as on Kaggle ("ImageNet Object Localization Challenge"), unpacked.

    IN/ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG   IN/ILSVRC/Data/CLS-LOC/val/*.JPEG   (its test has no labels)
    IN/LOC_val_solution.csv, or IN/ILSVRC/Annotations/CLS-LOC/val/*.xml, or the devkit   IN/LOC_synset_mapping.txt

The input folder may also be `ILSVRC` itself; val may be sorted into class folders. `CLS-LOC` itself is read as unpacked
archives.
"""

from __future__ import annotations

from pathlib import Path

from errors import InputError
from preprocess.sources.imagenet_parts import folders_of_lists, read_parts
from preprocess.sources.source import Listing

_IMAGES = "Data/CLS-LOC"


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    return _images(root) is not None


def read(root: Path) -> Listing:
    """List the images of Kaggle's layout.

    Raises:
        InputError: as `read_parts`, or there is no such folder.
    """
    images = _images(root)
    if images is None:
        raise InputError(f"input folder {root} has no ILSVRC/{_IMAGES}, as Kaggle's layout does")
    return read_parts(root, images, (root, root / "ILSVRC", *folders_of_lists(images)))


def _images(root: Path) -> Path | None:
    return next((path for path in (root / "ILSVRC" / _IMAGES, root / _IMAGES) if path.is_dir()), None)
