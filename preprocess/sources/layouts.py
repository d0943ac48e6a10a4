"""The layout of an input folder, detected or given."""

from __future__ import annotations

import stat
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from errors import InputError
from preprocess.sources import cifar10, folders, ilsvrc, kaggle, parquet, tiny_imagenet
from preprocess.sources.catalogue import Catalogue
from preprocess.sources.known_classes import with_classes
from preprocess.sources.source import Listing, Source, SourceOptions
from preprocess.sources.splits import assign_splits

_FOLDERS = "folders"
_OTHERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Listing]]] = {
    "ilsvrc": (ilsvrc.detect, ilsvrc.read),
    "kaggle": (kaggle.detect, kaggle.read),
    "tiny-imagenet": (tiny_imagenet.detect, tiny_imagenet.read),
    "parquet": (parquet.detect, parquet.read),
    "cifar10": (cifar10.detect, cifar10.read),
}
LAYOUTS = ("auto", _FOLDERS, *_OTHERS)


def open_source(root: Path, options: SourceOptions) -> Source:
    """List the input folder `root`; of `LAYOUTS`, `auto` detects the layout.

    Raises:
        InputError: no such folder, one that cannot be listed, one that fits several layouts, one that is
            incomplete or has a single class, or options for val that do not suit it.
    """
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise InputError(f"input folder {root} is not a folder")
        layout = _find(root) if options.layout == "auto" else options.layout
        listing = folders.read(root, options.splits) if layout == _FOLDERS else _OTHERS[layout][1](root)
        if options.classes is not None:
            listing = with_classes(listing, options.classes, root)
        found = assign_splits(listing, root, options)
        required = "train" if "train" in found and options.classes is None else None
        catalogue = Catalogue.of(listing.names, chain.from_iterable(found.values()), required)
    except FileNotFoundError:
        raise InputError(f"input folder {root} does not exist") from None
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be read: {error.strerror}") from error
    if len(catalogue.classes) < 2:
        raise InputError(f"input folder {root} has a single class, {catalogue.classes[0].id!r}; use at least 2 classes")
    return Source(root, catalogue, tuple(found), listing.containers, listing.ignored, listing.skipped)


def _find(root: Path) -> str:
    fitting = [layout for layout, (detect, _) in _OTHERS.items() if detect(root)]
    # Tiny-ImageNet has its own folder `train`, and so have archives of which only some are unpacked. With any other
    # layout it is a second copy of the same images, perhaps the beginning of an unpacked archive.
    own_train = fitting == ["tiny-imagenet"] or (fitting == ["ilsvrc"] and ilsvrc.is_partly_unpacked(root))
    if folders.has_train(root) and not own_train:
        fitting.append(_FOLDERS)
    if len(fitting) > 1:
        raise InputError(f"input folder {root} fits several layouts: choose one with --layout {' or '.join(fitting)}")
    return fitting[0] if fitting else _FOLDERS
