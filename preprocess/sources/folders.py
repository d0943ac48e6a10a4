"""Class folders, as torchvision's ImageFolder sees them.

    IN/train/<class>/**  IN/val/<class>/**  IN/test/<class>/**     (or other names that `splits.split_of` knows)
    IN/<class>/**

IN's own folders with the name of a split are never classes; a build names the folders of IN that it ignores. A file
counts as an image by its ending (`IMAGE_ENDINGS`, in any case), hidden or not, at any depth; all other files are
ignored. Symbolic links are followed, loops are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from errors import InputError
from preprocess.sources.catalogue import IMAGE_ENDINGS, FileRef, Found, printable
from preprocess.sources.source import Listing
from preprocess.sources.splits import split_of

_DEPTH = 8  # of folders that are looked into for a better --input


def has_train(root: Path) -> bool:
    """Return True if `root` has a folder of the train split."""
    return "train" in split_folders(root)


def read(root: Path) -> Listing:
    """Find the class folders and images under `root`; without a train folder, they are the train split.

    Raises:
        InputError: no class folders, only one, or what looks like a data set in the place of a class; a class folder
            without an image; or one that the val split has and the train split has not, or the other way round.
    """
    folders = split_folders(root)
    others = sorted(entry.name for entry in scan(root) if _is_folder(entry) and not entry.name.startswith("."))
    if "train" not in folders:
        classes = list_classes(root, "", ignored=[folder.name for folder in folders.values()], least=2)
        ignored = tuple(name for name in others if name not in classes)
        return Listing({name: name for name in classes}, {"train": class_images("train", classes)}, ignored=ignored)
    found = {"train": list_classes(folders["train"], f"{folders['train'].name}/", least=2)}
    if "val" in folders:
        found["val"] = list_classes(folders["val"], f"{folders['val'].name}/")
        _check_same_classes(folders, found["train"], found["val"])
    if "test" in folders and _holds_classes_of(folders["test"], found["train"]):
        found["test"] = list_classes(folders["test"], f"{folders['test'].name}/")
    used = {folders[split].name for split in found}
    return Listing(
        {name: name for name in found["train"]},
        {split: class_images(split, classes) for split, classes in found.items()},
        ignored=tuple(name for name in others if name not in used),
    )


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split in `root`.

    Raises:
        InputError: two folders are of one split, such as `val` and `valid`; or `root` cannot be listed.
    """
    folders: dict[str, Path] = {}
    for entry in sorted(scan(root), key=lambda entry: entry.name):
        split = split_of(entry.name)
        if split is None or not _is_folder(entry):
            continue
        if split in folders:
            raise InputError(
                f"input folder {root} has two folders for the {split} split, {folders[split].name} and "
                f"{printable(entry.name)}; rename or remove one"
            )
        folders[split] = root / entry.name
    return folders


def list_classes(folder: Path, prefix: str, ignored: Sequence[str] = (), least: int = 1) -> dict[str, list[str]]:
    """List the images of each class folder in `folder`.

    The images are paths relative to `folder` after `prefix`; folders named in `ignored` are not classes.

    Raises:
        InputError: fewer class folders than `least`, one without images, one that holds the folders of splits or is
            named like one, or one that cannot be listed.
    """
    names = sorted(entry.name for entry in scan(folder) if _is_folder(entry) and entry.name not in ignored)
    if not names:
        raise InputError(f"input folder {folder} holds no class folders (images are looked for in <class>/**)")
    if all(split_of(name) for name in names):
        raise InputError(f"input folder {folder} holds split folders instead of classes; use {folder} as --input")
    if len(names) < least:
        _refuse_single_class(folder, names[0])
    classes = {}
    for name in names:
        files, inner = _list_images(folder / name, f"{prefix}{name}")
        _check_no_splits(folder / name, inner)
        if not files:
            raise InputError(
                f"class {printable(name)!r} has no image in {folder} (endings that count: {', '.join(IMAGE_ENDINGS)})"
            )
        classes[name] = sorted(files)
    return classes


def _check_no_splits(folder: Path, inner: Sequence[str]) -> None:
    """Raise `InputError` if a class folder holds the folders of splits: then it is a data set, and they would mix."""
    splits = sorted(name for name in inner if split_of(name))
    if splits:
        raise InputError(
            f"input folder {folder.parent} holds {printable(folder.name)!r}, which has the split folders "
            f"{', '.join(map(printable, splits))} in it and is no class; use {folder} as --input"
        )


def _refuse_single_class(folder: Path, name: str) -> None:
    """Raise `InputError`, with the folder further inwards that holds several folders, if there is one."""
    inner, advice = folder / name, "use a folder with at least 2"
    for _ in range(_DEPTH):
        folders = [entry.name for entry in scan(inner) if _is_folder(entry) and not entry.name.startswith(".")]
        if len(folders) != 1:
            advice = f"use {inner} as --input" if folders else advice
            break
        inner /= folders[0]
    raise InputError(f"input folder {folder} has a single class folder, {printable(name)!r}; {advice}")


def _check_same_classes(folders: Mapping[str, Path], train: Mapping[str, object], val: Mapping[str, object]) -> None:
    for name in sorted(train.keys() ^ val.keys()):
        there, absent = ("train", "val") if name in train else ("val", "train")
        raise InputError(
            f"class {printable(name)!r} is in {folders[there]} but not in {folders[absent]}: both need the same classes"
        )


def _holds_classes_of(folder: Path, classes: Mapping[str, object]) -> bool:
    """Return True if a test folder has class folders, all of them known; often it holds images without labels."""
    names = {entry.name for entry in scan(folder) if _is_folder(entry)}
    return bool(names) and names <= classes.keys()


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


def _list_images(top: Path, path: str) -> tuple[list[str], list[str]]:
    """Return the path of each image under `top`, with `path` for that of `top`, and the folders in `top` itself."""
    # A folder is identified by device and inode; one that is its own ancestor is a loop of symbolic links.
    pending: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(top, path, frozenset())]
    images, inner = [], []
    while pending:
        folder, path, ancestors = pending.pop()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            continue
        for entry in scan(folder):
            if _is_folder(entry):
                pending.append((folder / entry.name, f"{path}/{entry.name}", ancestors | {identity}))
                if not ancestors:
                    inner.append(entry.name)
            elif _is_image(entry):
                images.append(f"{path}/{entry.name}")
    return images, inner


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
