"""The splits of a source: the names that folders and files have for them, and where val comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from errors import InputError
from preprocess.sources.catalogue import SPLITS, Found, shuffle_key
from preprocess.sources.source import Listing, SourceOptions

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
SPLIT_NAMES = tuple(_NAMES)
"""The names of splits that are understood, in any case, also with `set` at the end (`test_set`)."""


def split_of(name: str) -> str | None:
    """Return the split (of `SPLITS`) that a folder or file of this name holds; None if it names none."""
    lower = name.lower()
    return _NAMES.get(lower) or _NAMES.get(lower.removesuffix("set").rstrip("_- "))


def assign_splits(listing: Listing, root: Path, options: SourceOptions) -> dict[str, Iterable[Found]]:
    """Return the images of each split to build, in the order of `SPLITS`; val may be taken from train or test.

    A data set with train has val, too, perhaps an empty one.

    Raises:
        InputError: a split is missing, no way to val was chosen, or one although the folder has its own val.
    """
    found = dict(listing.found)
    wanted = options.splits
    if not listing.is_split and wanted is not None and len(wanted) == 1 and options.val_fraction is None:
        found = {wanted[0]: _moved(wanted[0], found["train"])}
    for option, given in (("--val-fraction", options.val_fraction is not None), ("--test-as-val", options.test_as_val)):
        if given and "val" in found:
            raise InputError(f"input folder {root} has its own val split: leave {option} out")
    if options.test_as_val:
        if options.val_fraction is not None:
            raise InputError("--test-as-val cannot be combined with --val-fraction; use one of them")
        if "test" not in found:
            raise InputError(f"input folder {root} has no test split for --test-as-val; use --val-fraction 0.1")
        found["val"] = _moved("val", found.pop("test"))
    elif options.val_fraction is not None and "train" in found:
        found.update(_divided(found["train"], options.val_fraction, options.seed))
    for split in wanted or ("train", "val"):
        if split not in found:
            _refuse_without(split, listing, root, found)
    if wanted is not None:
        found = {split: images for split, images in found.items() if split in wanted}
    if "train" in found:
        found.setdefault("val", ())
    return {split: found[split] for split in SPLITS if split in found}


def _refuse_without(split: str, listing: Listing, root: Path, found: Mapping[str, object]) -> None:
    there = " and ".join(name for name in SPLITS if name in found) or "no images"
    lacks = f"input folder {root} has {there}, but no {split} split"
    if split in listing.missing:
        lacks = f"{lacks}: {listing.missing[split]}"
    elif split == "val" and "train" in found:
        other = ", or --test-as-val to select models on the test images" if "test" in found else ""
        lacks = f"{lacks}: add --val-fraction 0.1 to keep a tenth of train for validation{other}"
    if split == "train" and found:
        lacks = f"{lacks}; to build the rest only, for training.evaluate, add --splits {' '.join(found)}"
    raise InputError(lacks)


def _moved(split: str, images: Iterable[Found]) -> Iterator[Found]:
    return ((split, class_id, name, ref) for _, class_id, name, ref in images)


def _divided(train: Iterable[Found], val_fraction: float, seed: int) -> dict[str, Iterable[Found]]:
    if val_fraction == 0:
        return {"train": train, "val": ()}
    by_class: dict[str, list[Found]] = {}
    for image in train:
        by_class.setdefault(image[1], []).append(image)
    kept: list[Found] = []
    for images in by_class.values():
        count = min(max(round(val_fraction * len(images)), 1), len(images) - 1)
        images.sort(key=lambda image: shuffle_key("val", seed, image[2]))
        kept += _moved("val", images[:count])
        del images[:count]
    return {"train": chain.from_iterable(by_class.values()), "val": kept}
