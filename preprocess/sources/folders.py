"""Class folders, as torchvision's ImageFolder sees them.

    IN/train/<class>/**  IN/val/<class>/**     (IN/test is the val split when there is no IN/val)
    IN/<class>/**  or  IN/train/<class>/**     with a fraction of each class kept for the val split

IN's own `train`, `val` and `test` are never classes; a build names the folders of IN that it ignores. A file
counts as an image by its ending (`IMAGE_ENDINGS`, in any case), hidden or not, at any depth; all other files are
ignored. Symbolic links are followed, loops are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from errors import InputError
from preprocess.sources.catalogue import IMAGE_ENDINGS, Catalogue, FileRef, Found, printable, shuffle_key
from preprocess.sources.source import Source

_SPLIT_FOLDERS = ("train", "val", "test")


def read(root: Path, val_fraction: float | None, seed: int) -> Source:
    """Find the class folders and images under `root`.

    Args:
        root: the input folder.
        val_fraction: the fraction of each class to keep for the val split, rounded, but at least 1 image of a
            class that has 2; 0 leaves the val split empty. None where `root` has its own val split.
        seed: decides which images are kept.

    Raises:
        InputError: no class folders, `val_fraction` missing or superfluous, a class folder without an image, or one
            that only one of the splits has.
    """
    train = root / "train"
    if not train.is_dir():
        train = root
    val = next((root / name for name in ("val", "test") if train != root and (root / name).is_dir()), None)
    if val is None and val_fraction is None:
        present = "no train and val folders" if train == root else "a train folder, but no val or test folder"
        raise InputError(f"input folder {root} has {present}: add --val-fraction 0.1 to keep a tenth for validation")
    if val is not None and val_fraction is not None:
        raise InputError(f"input folder {root} has its own val split, {val}: leave --val-fraction out")
    classes = list_classes(train, *(("", _SPLIT_FOLDERS) if train == root else ("train/",)))
    names = {name: name for name in classes}
    if val is None:
        ignored = _others(root, _SPLIT_FOLDERS, there=True) if train == root else _others(root, ("train",))
        return Source(root, Catalogue.of(names, _kept_apart(classes, val_fraction or 0.0, seed)), ignored=ignored)
    listing = {"train": classes, "val": list_classes(val, f"{val.name}/")}
    for name in sorted(listing["train"].keys() ^ listing["val"].keys()):
        there, absent = (train, val) if name in listing["train"] else (val, train)
        raise InputError(f"class {printable(name)!r} is in {there} but not in {absent}: both need the same classes")
    found = (image for split, classes in listing.items() for image in class_images(split, classes))
    return Source(root, Catalogue.of(names, found), ignored=_others(root, ("train", val.name)))


def _others(root: Path, splits: Sequence[str], there: bool = False) -> tuple[str, ...]:
    """Return the folders in `root`, except hidden ones, that are in `splits` if `there`, else the others."""
    folders = (entry.name for entry in scan(root) if _is_folder(entry) and not entry.name.startswith("."))
    return tuple(sorted(name for name in folders if (name in splits) == there))


def list_classes(folder: Path, prefix: str, ignored: Sequence[str] = ()) -> dict[str, list[str]]:
    """List the images of each class folder in `folder`.

    The images are paths relative to `folder` after `prefix`; folders named in `ignored` are not classes.

    Raises:
        InputError: no class folders, one without images, or one that cannot be listed.
    """
    names = sorted(entry.name for entry in scan(folder) if _is_folder(entry) and entry.name not in ignored)
    if not names:
        raise InputError(f"input folder {folder} holds no class folders (images are looked for in <class>/**)")
    classes = {name: sorted(_walk_images(folder / name, f"{prefix}{name}")) for name in names}
    for name, files in classes.items():
        if not files:
            raise InputError(
                f"class {printable(name)!r} has no image in {folder} (endings that count: {', '.join(IMAGE_ENDINGS)})"
            )
    return classes


def class_images(split: str, classes: Mapping[str, Sequence[str]], folder: str = "") -> Iterator[Found]:
    """Yield the images that `list_classes` has listed; their paths are relative to `folder` in the input folder."""
    for name, files in classes.items():
        for file in files:
            yield split, name, file, FileRef(f"{folder}{file}")


def list_images(folder: Path) -> list[str]:
    """Return the names of the images that lie in `folder` itself, sorted."""
    return sorted(entry.name for entry in scan(folder) if _is_image(entry))


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of `folder`; raise `InputError` if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"input folder {folder} cannot be listed: {error.strerror}") from error


def _walk_images(top: Path, path: str) -> Iterator[str]:
    """Yield the path of each image under `top`, with `path` for that of `top`."""
    # A folder is identified by device and inode; one that is its own ancestor is a loop of symbolic links.
    pending: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(top, path, frozenset())]
    while pending:
        folder, path, ancestors = pending.pop()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            continue
        for entry in scan(folder):
            if _is_folder(entry):
                pending.append((folder / entry.name, f"{path}/{entry.name}", ancestors | {identity}))
            elif _is_image(entry):
                yield f"{path}/{entry.name}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Path.is_dir() and not entry.is_dir(): a link to itself is False there, an error here.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _is_image(entry: os.DirEntry[str]) -> bool:
    if not entry.name.lower().endswith(IMAGE_ENDINGS):
        return False
    # A broken link is a broken image, to be rejected and listed. A pipe would be waited for without end.
    if not entry.is_symlink():
        return entry.is_file(follow_symlinks=False)
    target = Path(entry.path)
    return target.is_file() or not target.exists()


def _kept_apart(train: Mapping[str, Sequence[str]], val_fraction: float, seed: int) -> Iterator[Found]:
    for name, files in train.items():
        count = max(round(val_fraction * len(files)), 1) if val_fraction > 0 else 0
        count = min(count, max(len(files) - 1, 0))
        shuffled = sorted(files, key=lambda file: shuffle_key("val", seed, file))
        yield from class_images("train", {name: shuffled[count:]})
        yield from class_images("val", {name: shuffled[:count]})
