"""Class folders, as torchvision's ImageFolder sees them.

    IN/train/<class>/**  IN/val/<class>/**  IN/test/<class>/**     (or other names that `splits.split_of` knows)
    IN/<class>/**

IN's own folders with the name of a split are never classes; a build names the folders of IN that it ignores. A file at
any depth is an image if its ending says so (`IMAGE_ENDINGS`, in any case) or its first bytes do; others are counted.
Archives next to the class folders or the folders of splits are refused: they may hold classes or a split.
What file managers and editors leave is skipped. Symbolic links are followed, loops are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from errors import InputError
from preprocess.sources.catalogue import SPLITS, FileRef, Found, printable
from preprocess.sources.skipping import (
    Skipped,
    ending_of,
    holds_image,
    is_archive_name,
    is_image_name,
    is_left_folder,
)
from preprocess.sources.source import Listing
from preprocess.sources.splits import split_of

LAYOUT = "folders"
_ARCHIVES_SHOWN = 3
_DEPTH = 8  # of folders that are looked into for a better --input


def has_train(root: Path) -> bool:
    """Return True if `root` has a folder of the train split."""
    return "train" in split_folders(root)


def read(root: Path, wanted: Sequence[str] | None = None, named: bool = False) -> Listing:
    """Find the class folders and images under `root`; without folders of splits, they are of none.

    Folders of splits that are not `wanted` are not listed if all wanted ones are there. With `named`, the user has
    chosen this layout: archives next to the folders of splits are then a second copy, and skipped.

    Raises:
        InputError: an archive that is not unpacked, no class folders, only one, or what looks like a data set in the
            place of a class; a class folder without an image; or one that val has and train has not.
    """
    folders, skipped = split_folders(root), Skipped()
    others = [name for name in folder_names(root) if not is_left_folder(name)]
    if wanted is not None and set(wanted) <= folders.keys():
        folders = {split: folder for split, folder in folders.items() if split in wanted}
    elif "train" not in folders and (len(others) > len(folders) or not folders):
        classes = list_classes(root, "", skipped, ignored=[folder.name for folder in folders.values()], least=2)
        ignored = tuple(name for name in others if name not in classes)
        names, found = {name: name for name in classes}, {"train": class_images("train", classes)}
        return Listing(names, found, ignored=ignored, skipped=skipped, is_split=False)
    if not named:
        _check_no_archives(root, way_out=f", or skip them with --layout {LAYOUT}")
    _skip_files(root, skipped)
    listed: dict[str, dict[str, list[str]]] = {}
    for split in (name for name in SPLITS if name in folders):
        folder, train = folders[split], listed.get("train")
        if split == "test" and train is not None and not (wanted or _holds_classes_of(folder, train)):
            continue
        listed[split] = list_classes(folder, f"{folder.name}/", skipped, least=2 if not listed else 1)
        if train is not None:
            _check_known_classes(folder, listed[split], folders["train"], train)
    used = {folders[split].name for split in listed}
    return Listing(
        {name: name for classes in listed.values() for name in classes},
        {split: class_images(split, classes) for split, classes in listed.items()},
        ignored=tuple(name for name in others if name not in used),
        skipped=skipped,
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


def list_classes(
    folder: Path,
    prefix: str,
    skipped: Skipped,
    ignored: Sequence[str] = (),
    packed: Sequence[str] = (),
    least: int = 1,
) -> dict[str, list[str]]:
    """List the images of each class folder in `folder`, and count the other files in `skipped`.

    The images are paths relative to `folder` after `prefix`. Folders named in `ignored` are not classes, nor are those
    of the classes in `packed`, which are read from their tars. Images in `folder` itself have no class: they are
    skipped, too.

    Raises:
        InputError: an archive in `folder`, except of a class in `packed`; fewer class folders than `least`, one without
            images, one that holds the folders of splits or is named like one, or one that cannot be listed.
    """
    names = [name for name in folder_names(folder, skipped) if name not in {*ignored, *packed}]
    if not names:
        _check_no_archives(folder, packed)
        images = len(list_images(folder, Skipped()))
        held = f"{images} images, but no class folders" if images else "no class folders"
        raise InputError(f"input folder {folder} holds {held}; put images into <class>/, or name their --labels FILE")
    if all(split_of(name) for name in names):
        raise InputError(f"input folder {folder} holds split folders instead of classes; use {folder} as --input")
    if len(names) < least and folder_names(folder / names[0]):
        _refuse_single_class(folder, names[0])
    _check_no_archives(folder, packed)
    if len(names) < least:
        _refuse_single_class(folder, names[0])
    classes = {}
    for name in names:
        files, inner = walk_images(folder / name, f"{prefix}{name}/", skipped)
        _check_no_splits(folder / name, inner)
        if not files:
            raise InputError(f"class {printable(name)!r} has no image in {folder}; add images, or remove the folder")
        classes[name] = sorted(files)
    _skip_files(folder, skipped, packed)
    return classes


def _check_no_archives(folder: Path, packed: Sequence[str] = (), way_out: str = "") -> None:
    """Raise `InputError` if `folder` holds an archive other than the tar of a class in `packed`."""
    tars = {f"{name}.tar" for name in packed}
    files = (entry.name for entry in scan(folder) if is_archive_name(entry.name) and not _is_folder(entry))
    archives = sorted(name for name in files if name not in tars)
    if archives:
        shown = ", ".join(map(printable, archives[:_ARCHIVES_SHOWN]))
        more = f" and {len(archives) - _ARCHIVES_SHOWN} more" if len(archives) > _ARCHIVES_SHOWN else ""
        raise InputError(
            f"input folder {folder} holds {shown}{more}: archives are not read here; unpack them into folders, or "
            f"remove them{way_out}"
        )


def _skip_files(folder: Path, skipped: Skipped, packed: Sequence[str] = ()) -> None:
    """Count the files in `folder` itself, except the tars of the classes in `packed`; an image there has no class."""
    others = Skipped()
    skipped.update(f"{ending_of(name)} outside the class folders" for name in list_images(folder, others))
    others[".tar"] -= len(packed)
    skipped.update(+others)


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
    inner, advice = folder / name, "use a folder with at least 2, or --labels FILE"
    for _ in range(_DEPTH):
        folders = [name for name in folder_names(inner) if not is_left_folder(name)]
        if len(folders) != 1:
            advice = f"use {inner} as --input" if folders else advice
            break
        inner /= folders[0]
    raise InputError(f"input folder {folder} has a single class folder, {printable(name)!r}; {advice}")


def _check_known_classes(folder: Path, classes: Iterable[str], train: Path, known: Mapping[str, object]) -> None:
    for name in sorted(set(classes) - known.keys()):
        raise InputError(f"class {printable(name)!r} is in {folder} but not in {train}; add it there, or remove it")


def _holds_classes_of(folder: Path, classes: Mapping[str, object]) -> bool:
    """Return True if a test folder has class folders, all of them known; often it holds images without labels."""
    names = {name for name in folder_names(folder) if not is_left_folder(name)}
    return bool(names) and names <= classes.keys()


def class_images(split: str, classes: Mapping[str, Sequence[str]], folder: str = "") -> Iterator[Found]:
    """Yield the images that `list_classes` has listed; their paths are relative to `folder` in the input folder."""
    for name, files in classes.items():
        for file in files:
            yield split, name, file, FileRef(f"{folder}{file}")


def list_images(folder: Path, skipped: Skipped) -> list[str]:
    """Return the names of the images that lie in `folder` itself, sorted; count other files in `skipped`."""
    return sorted(entry.name for entry in scan(folder) if not _is_folder(entry) and _is_image(entry, skipped))


def folder_names(folder: Path, skipped: Skipped | None = None) -> list[str]:
    """Return the names of the folders in `folder`, sorted.

    With `skipped`, those that hold no data are counted there and left out.
    """
    names = sorted(entry.name for entry in scan(folder) if _is_folder(entry))
    if skipped is None:
        return names
    skipped.update(f"{name}/" for name in names if is_left_folder(name))
    return [name for name in names if not is_left_folder(name)]


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of `folder`; raise `InputError` if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"input folder {folder} cannot be listed: {error.strerror}") from error


def walk_images(top: Path, path: str, skipped: Skipped) -> tuple[list[str], list[str]]:
    """Return the path of each image under `top`, with `path` for that of `top`, and the folders in `top` itself.

    Other files are counted in `skipped`.
    """
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
            if not _is_folder(entry):
                if _is_image(entry, skipped):
                    images.append(f"{path}{entry.name}")
            elif is_left_folder(entry.name):
                skipped[f"{entry.name}/"] += 1
            else:
                pending.append((folder / entry.name, f"{path}{entry.name}/", ancestors | {identity}))
                if not ancestors:
                    inner.append(entry.name)
    return images, inner


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Path.is_dir() and not entry.is_dir(): a link to itself is False there, an error here.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _is_image(entry: os.DirEntry[str], skipped: Skipped) -> bool:
    """Return True for an image; count any other file in `skipped`. Only one with an unusual ending is opened."""
    verdict = is_image_name(entry.name)
    # A broken link is a broken image, to be rejected and listed. A pipe would be waited for without end.
    if entry.is_symlink():
        target = Path(entry.path)
        there = target.is_file() or not target.exists()
    else:
        there = entry.is_file(follow_symlinks=False)
    if there and (holds_image(entry.path) if verdict is None else verdict):
        return True
    skipped[ending_of(entry.name)] += 1
    return False
