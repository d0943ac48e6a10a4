"""ILSVRC-2012 as the official archives, read in place, or partly unpacked.

    IN/ILSVRC2012_img_train.tar        a tar of one tar for each class, <wnid>.tar
    IN/ILSVRC2012_img_val.tar          the images side by side
    IN/ILSVRC2012_devkit_t12.tar.gz    ids and names of the classes, and the classes of the val images

Train may be unpacked to IN/train, as class tars, class folders or some of each, val to IN/val or IN itself, side by
side or in class folders, and the devkit to IN. Kaggle's lists do in the place of the devkit.
"""

from __future__ import annotations

from pathlib import Path

from preprocess.sources.folders import folder_names
from preprocess.sources.imagenet_parts import TRAIN, VAL, class_tars, folders_of_lists, is_flat_val, read_parts
from preprocess.sources.source import Listing


def detect(root: Path) -> bool:
    """Return True if a part of `root` is packed or not sorted into class folders."""
    packed = any((root / name).is_file() for name in (TRAIN, VAL)) or _has_class_tars(root)
    return packed or is_flat_val(root / "val") or is_flat_val(root)


def is_partly_unpacked(root: Path) -> bool:
    """Return True if each split is there only once, and the folder `train` belongs to this layout."""
    packed_twice = (root / VAL).is_file() and (root / "val").is_dir() and bool(folder_names(root / "val"))
    return not (root / TRAIN).is_file() and (root / "train").is_dir() and not packed_twice


def read(root: Path) -> Listing:
    """List the images of the official archives, or of what they unpack to.

    Raises:
        InputError: as `read_parts`.
    """
    return read_parts(root, root, (root, *folders_of_lists(root)))


def _has_class_tars(root: Path) -> bool:
    return (root / "train").is_dir() and bool(class_tars(root / "train"))
