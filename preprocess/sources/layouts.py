"""The layout of an input folder, detected or given."""

from __future__ import annotations

import stat
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from errors import InputError
from preprocess.sources import cifar10, folders, ilsvrc, kaggle, label_file, parquet, tiny_imagenet, webdataset_tars
from preprocess.sources.catalogue import Catalogue
from preprocess.sources.known_classes import with_classes
from preprocess.sources.source import Listing, Source, SourceOptions
from preprocess.sources.splits import assign_splits

_FOLDERS = folders.LAYOUT
_DETECT: dict[str, Callable[[Path], bool]] = {
    "ilsvrc": ilsvrc.detect,
    "kaggle": kaggle.detect,
    "tiny-imagenet": tiny_imagenet.detect,
    "parquet": parquet.detect,
    "webdataset": webdataset_tars.detect,
    "cifar10": cifar10.detect,
}
_WITHOUT_OPTIONS: dict[str, Callable[[Path], Listing]] = {
    "ilsvrc": ilsvrc.read,
    "kaggle": kaggle.read,
    "tiny-imagenet": tiny_imagenet.read,
    "cifar10": cifar10.read,
}
_TABLES: dict[str, Callable[[Path, SourceOptions], Listing]] = {
    "parquet": parquet.read,
    "webdataset": webdataset_tars.read,
}
LAYOUTS = ("auto", _FOLDERS, *_DETECT)


def open_source(root: Path, options: SourceOptions) -> Source:
    """List the input folder `root`; of `LAYOUTS`, `auto` detects the layout.

    Raises:
        InputError: no such folder, one that cannot be listed, one that fits several layouts, one that is
            incomplete or has a single class, or options for val that do not suit it.
    """
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise InputError(f"input folder {root} is not a folder")
        listing = _read(root, options)
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


def _read(root: Path, options: SourceOptions) -> Listing:
    if options.labels is not None:
        if options.layout != "auto":
            raise InputError(f"--labels cannot be combined with --layout {options.layout}; leave one of them out")
        path = next((path for path in (options.labels, root / options.labels) if path.is_file()), None)
        if path is None:
            raise InputError(f"--labels is {options.labels}: it is no file, nor is {root / options.labels}; use one")
        return label_file.read(root, path, options)
    layout = _find(root) if options.layout == "auto" else options.layout
    if layout in _TABLES:
        return _TABLES[layout](root, options)
    if options.image_column or options.label_column:
        raise InputError(f"--image-column and --label-column are for tables, not for {layout}; leave them out")
    if layout == _FOLDERS:
        return folders.read(root, options.splits, named=options.layout == _FOLDERS)
    return _WITHOUT_OPTIONS[layout](root)


def _find(root: Path) -> str:
    fitting = [layout for layout, detect in _DETECT.items() if detect(root)]
    own_train = {
        "tiny-imagenet": True,
        "ilsvrc": ilsvrc.is_partly_unpacked(root),
        "parquet": parquet.is_in_folders(root),
        "webdataset": webdataset_tars.is_in_folders(root),
    }
    # With any other layout, a folder `train` is a second copy of the same images, perhaps the beginning of an unpacked
    # archive.
    if folders.has_train(root) and not (len(fitting) == 1 and own_train.get(fitting[0])):
        fitting.append(_FOLDERS)
    if len(fitting) > 1:
        raise InputError(f"input folder {root} fits several layouts: choose one with --layout {' or '.join(fitting)}")
    return fitting[0] if fitting else _FOLDERS
