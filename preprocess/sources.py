"""Where raw images come from: class folders, as torchvision's ImageFolder sees them.

    IN/train/<class>/**  IN/val/<class>/**     (IN/test is the val split when there is no IN/val)
    IN/<class>/**  or  IN/train/<class>/**     with a fraction of each class kept for the val split

IN's own `train`, `val` and `test` are never classes. A file counts as an image by its ending (`IMAGE_ENDINGS`, in
any case), hidden or not, at any depth; all other files are ignored. Symbolic links are followed, loops are not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.images import UnreadableImage
from preprocess.manifest import InputError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val")
_SPLIT_FOLDERS = ("train", "val", "test")

Listing = Mapping[str, Mapping[str, Sequence[str]]]
"""Split -> class -> image files, as paths relative to the input folder with `/` between the parts."""


@dataclass(frozen=True, slots=True)
class RawImage:
    """One raw image: its split, its label (index in the sorted classes) and its path in the input folder."""

    split: str
    label: int
    source: str


@dataclass(frozen=True)
class Catalogue:
    """All raw images of a source: classes sorted by id, images sorted by source."""

    classes: tuple[str, ...]
    images: tuple[RawImage, ...]

    @staticmethod
    def of(listing: Listing) -> Catalogue:
        """Number the classes of the train split and line up the images."""
        classes = tuple(sorted(listing["train"]))
        label = {name: index for index, name in enumerate(classes)}
        images = [
            RawImage(split, label[name], source)
            for split, folders in listing.items()
            for name, sources in folders.items()
            for source in sources
        ]
        return Catalogue(classes, tuple(sorted(images, key=lambda image: image.source)))

    def split(self, name: str) -> list[RawImage]:
        """Return the images of one split."""
        return [image for image in self.images if image.split == name]


def list_class_folders(root: Path, val_fraction: float | None, seed: int) -> Listing:
    """Find the class folders and images under `root`.

    Args:
        root: the input folder.
        val_fraction: the part of each class that is kept for the val split, rounded, but at least 1 image of a
            class that has 2; 0 leaves the val split empty. None where `root` has its own val split.
        seed: decides which images are kept.

    Raises:
        InputError: no such folder, no class folders in it, `val_fraction` missing or superfluous, a class folder
            without an image, or one that only one of the splits has.
    """
    if not root.is_dir():
        raise InputError(f"input folder {root} {'is not a folder' if root.exists() else 'does not exist'}")
    train = root / "train"
    if not train.is_dir():
        train = root
    val = next((root / name for name in ("val", "test") if train != root and (root / name).is_dir()), None)
    if val is None and val_fraction is None:
        beside = "no train and val folders" if train == root else "a train folder, but no val or test beside it"
        raise InputError(f"input folder {root} has {beside}: add --val-fraction 0.1 to keep a tenth for validation")
    if val is not None and val_fraction is not None:
        raise InputError(f"input folder {root} has its own val split, {val}: leave --val-fraction out")
    classes = _list_classes(root, train)
    if val is None:
        return _keep_apart(classes, val_fraction or 0.0, seed)
    listing = {"train": classes, "val": _list_classes(root, val)}
    for name in sorted(listing["train"].keys() ^ listing["val"].keys()):
        there, absent = (train, val) if name in listing["train"] else (val, train)
        raise InputError(f"class {printable(name)!r} is in {there} but not in {absent}: both need the same classes")
    return listing


def shuffle_key(purpose: str, seed: int, source: str) -> bytes:
    """Return what to sort sources by for a seeded shuffle: no source's place depends on how many others there are."""
    return hashlib.blake2b(os.fsencode(f"{purpose} {seed} {source}"), digest_size=16).digest()


def read_bytes(root: Path, source: str) -> bytes:
    """Read one raw image file; raise `UnreadableImage` where the system says no."""
    try:
        return (root / source).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error


def printable(name: str) -> str:
    """Return a file's name as text that UTF-8 can hold: undecodable bytes become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _list_classes(root: Path, folder: Path) -> dict[str, list[str]]:
    names = sorted(entry.name for entry in _scan(folder) if _is_folder(entry))
    if folder == root:
        names = [name for name in names if name not in _SPLIT_FOLDERS]
    if not names:
        raise InputError(f"input folder {folder} holds no class folders (images are looked for in <class>/**)")
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    classes = {name: sorted(_walk_images(folder / name, f"{prefix}{name}")) for name in names}
    for name, sources in classes.items():
        if not sources:
            raise InputError(
                f"class {printable(name)!r} has no image in {folder} (endings that count: {', '.join(IMAGE_ENDINGS)})"
            )
    return classes


def _walk_images(top: Path, source: str) -> Iterator[str]:
    """Yield the sources of the images under `top`, whose own source is `source`."""
    # A folder is identified by device and inode; one that is its own ancestor is a loop of symbolic links.
    pending: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(top, source, frozenset())]
    while pending:
        folder, source, ancestors = pending.pop()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            continue
        for entry in _scan(folder):
            if _is_folder(entry):
                pending.append((folder / entry.name, f"{source}/{entry.name}", ancestors | {identity}))
            elif entry.name.lower().endswith(IMAGE_ENDINGS) and _is_file_or_broken_link(entry):
                yield f"{source}/{entry.name}"


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"input folder {folder} cannot be listed: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Path.is_dir() and not entry.is_dir(): a link to itself is False there, an error here.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    # A broken link is a broken image, to be rejected and listed. A pipe would be waited for without end.
    if not entry.is_symlink():
        return entry.is_file(follow_symlinks=False)
    target = Path(entry.path)
    return target.is_file() or not target.exists()


def _keep_apart(train: Mapping[str, Sequence[str]], val_fraction: float, seed: int) -> Listing:
    listing: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}}
    for name, sources in train.items():
        count = max(round(val_fraction * len(sources)), 1) if val_fraction > 0 else 0
        count = min(count, max(len(sources) - 1, 0))
        shuffled = sorted(sources, key=lambda source: shuffle_key("val", seed, source))
        listing["train"][name] = shuffled[count:]
        if count:
            listing["val"][name] = shuffled[:count]
    return listing
