"""The layout of an input folder, detected or given."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from errors import InputError
from preprocess.sources import cifar10, folders, ilsvrc, kaggle, parquet, tiny_imagenet
from preprocess.sources.source import Source

_FOLDERS = "folders"
_OTHERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Source]]] = {
    "ilsvrc": (ilsvrc.detect, ilsvrc.read),
    "kaggle": (kaggle.detect, kaggle.read),
    "tiny-imagenet": (tiny_imagenet.detect, tiny_imagenet.read),
    "parquet": (parquet.detect, parquet.read),
    "cifar10": (cifar10.detect, cifar10.read),
}
LAYOUTS = ("auto", _FOLDERS, *_OTHERS)


def open_source(root: Path, layout: str, val_fraction: float | None, seed: int) -> Source:
    """List the input folder `root`; of `LAYOUTS`, `auto` detects the layout.

    `val_fraction` and `seed` are as in `folders.read`, and only for class folders.

    Raises:
        InputError: no such folder, one that cannot be listed, one that fits several layouts, one that is
            incomplete, or `val_fraction` where the layout has its own val split.
    """
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise InputError(f"input folder {root} is not a folder")
        if layout == "auto":
            layout = _find(root)
        if layout == _FOLDERS:
            return folders.read(root, val_fraction, seed)
        if val_fraction is not None:
            raise InputError(f"input folder {root} ({layout}) has its own val split: leave --val-fraction out")
        return _OTHERS[layout][1](root)
    except FileNotFoundError:
        raise InputError(f"input folder {root} does not exist") from None
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be read: {error.strerror}") from error


def _find(root: Path) -> str:
    fitting = [layout for layout, (detect, _) in _OTHERS.items() if detect(root)]
    # Tiny-ImageNet has its own folder `train`. With any other layout it is a second copy of the same images, perhaps
    # the beginning of an unpacked archive.
    if (root / "train").is_dir() and fitting != ["tiny-imagenet"]:
        fitting.append(_FOLDERS)
    if len(fitting) > 1:
        raise InputError(f"input folder {root} fits several layouts: choose one with --layout {' or '.join(fitting)}")
    return fitting[0] if fitting else _FOLDERS
