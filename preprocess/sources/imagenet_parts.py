"""The images of ImageNet, each split in whatever form it is: the official tar, what that unpacks to, or class folders.

Only the headers of tars are read here; an image is located by its offset in the outer tar. Its name is the same as in
class folders, so that all forms give the same shards.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from errors import InputError
from preprocess.images.formats import MAGIC_BYTES, format_of
from preprocess.sources.catalogue import ArchiveRef, FileRef, Found, ImageRef, printable
from preprocess.sources.folders import class_images, folder_names, list_classes, list_images, scan
from preprocess.sources.imagenet_labels import (
    DEVKIT,
    SOLUTION,
    WHERE_FROM,
    ClassNames,
    read_class_names,
    read_val_labels,
)
from preprocess.sources.labels import check_known, check_listed, check_same
from preprocess.sources.skipping import Skipped, ending_of, is_image_name
from preprocess.sources.source import Listing
from preprocess.sources.tar_headers import Member, open_tar, read_members

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
_VAL_IMAGE = "ILSVRC2012_val_"
_UNLABELLED = "val images without labels"


def is_flat_val(folder: Path) -> bool:
    """Return True if val images lie side by side in a folder, with the names of the official archive."""
    return folder.is_dir() and any(entry.name.startswith(_VAL_IMAGE) for entry in scan(folder))


def is_class_tar(path: Path) -> bool:
    """Return True for the name of an official archive, or of a tar that the one of train unpacks to."""
    return path.name in (TRAIN, VAL) or re.fullmatch(r"n\d{8}\.tar", path.name) is not None


def class_tars(folder: Path) -> list[str]:
    """Return the class ids of the tars in a folder, sorted: that is what the archive of train unpacks to."""
    return sorted(Path(entry.name).stem for entry in scan(folder) if is_class_tar(Path(entry.name)))


def folders_of_lists(images: Path) -> tuple[Path, ...]:
    """Return the folders with Kaggle's lists if `images` is ILSVRC/Data/CLS-LOC: ILSVRC, and the one around it."""
    path = images.resolve()  # `.` has no parent
    return tuple(path.parents[1:3]) if path.parts[-3:] == ("ILSVRC", "Data", "CLS-LOC") else ()


def read_parts(root: Path, images: Path, lists: Sequence[Path]) -> Listing:
    """List the images of train and val.

    Args:
        root: the input folder, with archives in it.
        images: the folder with the unpacked splits `train` and `val`.
        lists: folders with the files that have names and labels.

    Raises:
        InputError: a file is truncated or not what its name says, or images, labels and names do not fit together.
    """
    parts = _Parts(root, images, read_class_names(lists), Skipped())
    train, val = parts.list_train(), parts.list_val(lists)
    found: dict[str, Iterable[Found]] = {}
    if train is not None:
        found["train"] = chain.from_iterable(train.values())
    if val is not None:
        found["val"] = val
    names: Mapping[str, str] = {class_id: class_id for class_id in train or {image[1] for image in val or ()}}
    source = "the official archives, from image-net.org" if root == images else "Kaggle's archive"
    missing = {
        "train": f"{root / TRAIN if root == images else images / 'train'} is missing; it is in {source}",
        "val": f"{root / VAL if root == images else images / 'val'} is missing; it is in {source}",
    }
    ignored = [f"{parts.prefix}test"] if (images / "test").is_dir() else []  # the challenge has no labels for it
    if val is None and parts.has_val:
        labels = root / (DEVKIT if root == images else SOLUTION)
        missing["val"] = f"{labels} is missing; {WHERE_FROM}"
        unlabelled = parts.skipped[_UNLABELLED]
        ignored.append(f"{parts.val_name} ({unlabelled} images without labels: {labels} is missing)")
    known = parts.known.names if parts.known else names
    return Listing(known, found, ignored=tuple(ignored), skipped=parts.skipped, missing=missing)


@dataclass(frozen=True)
class _Parts:
    root: Path
    images: Path
    known: ClassNames | None
    skipped: Skipped

    @property
    def has_val(self) -> bool:
        return (self.root / VAL).is_file() or self.val_folder.is_dir()

    @property
    def val_folder(self) -> Path:
        return self.images if is_flat_val(self.images) else self.images / "val"

    @property
    def val_name(self) -> str:
        """Return what holds the val images, relative to the input folder."""
        if (self.root / VAL).is_file():
            return VAL
        return f"{self.prefix}val" if self.val_folder != self.images else f"{self.prefix}{_VAL_IMAGE}*"

    @property
    def prefix(self) -> str:
        """Of the unpacked images, relative to the input folder."""
        return "" if self.images == self.root else f"{self.images.relative_to(self.root).as_posix()}/"

    def list_train(self) -> dict[str, Iterable[Found]] | None:
        """Return the images of each class of train, from its archive or its folder; None if there is neither."""
        where, listed = self.root / TRAIN, dict[str, Iterable[Found]]()
        if where.is_file():
            with open_tar(where) as file:
                tars = [member for member in read_members(file, where) if member.name.endswith(".tar")]
            for tar in tars:
                name = posixpath.basename(tar.name).removesuffix(".tar")
                listed[name] = self._in_class_tar(name, where, tar)
        elif (where := self.images / "train").is_dir():
            # A folder next to its tar may be the beginning of unpacking it: the tar is complete.
            packed = class_tars(where)
            listed |= {name: self._in_class_tar(name, where / f"{name}.tar") for name in packed}
            unpacked = [name for name in folder_names(where, Skipped()) if name not in packed]
            if unpacked or not packed:
                least = 1 if packed else 2
                classes = list_classes(where, "train/", self.skipped, packed=packed, least=least)
                listed |= {name: class_images("train", {name: files}, self.prefix) for name, files in classes.items()}
        else:
            return None
        if self.known is not None:
            check_same(listed, where, self.known.names, self.known.listed)
        return listed

    def list_val(self, lists: Sequence[Path]) -> list[Found] | None:
        """Return the images of val, from its archive or its folder; None if there is neither, or no labels."""
        where, located = self.root / VAL, dict[str, ImageRef]()
        if where.is_file():
            with open_tar(where) as file:
                for member in _images(file, read_members(file, where), where, self.skipped):
                    located[posixpath.basename(member.name)] = ArchiveRef(VAL, member.offset, member.size)
        elif not self.has_val:
            return None
        elif self.val_folder != self.images and folder_names(self.val_folder, Skipped()):
            where = self.val_folder
            classes = list_classes(where, "val/", self.skipped)
            if self.known is not None:
                check_known(classes, where, self.known.names, self.known.listed)
            return list(class_images("val", classes, self.prefix))
        else:
            where = self.val_folder
            prefix = self.prefix if where == self.images else f"{self.prefix}val/"
            located |= {name: FileRef(f"{prefix}{name}") for name in list_images(where, self.skipped)}
        labels = read_val_labels(lists, self.known)
        if labels is None:
            self.skipped[_UNLABELLED] += len(located)
            return None
        class_of = labels.match(located, where)
        check_listed(located, where, class_of, labels.listed)
        return [("val", class_of[name], f"val/{class_of[name]}/{name}", ref) for name, ref in located.items()]

    def _in_class_tar(self, name: str, path: Path, tar: Member | None = None) -> Iterator[Found]:
        """Yield the images of a class from its tar: the file `path`, or the member `tar` of it."""
        begin, end = (0, None) if tar is None else (tar.offset, tar.offset + tar.size)
        named = path if tar is None else path / f"{name}.tar"
        with open_tar(path) as file:
            for image in _images(file, read_members(file, named, begin, end), named, self.skipped):
                ref = ArchiveRef(path.relative_to(self.root).as_posix(), image.offset, image.size)
                yield "train", name, f"train/{name}/{image.name.removeprefix('./')}", ref


def _images(file: BinaryIO, members: Iterable[Member], path: Path, skipped: Skipped) -> Iterator[Member]:
    for member in members:
        name = posixpath.basename(member.name)
        verdict = is_image_name(name)
        if verdict and not member.plain:
            raise InputError(f"{path}: {printable(member.name)!r} is a link, a folder or sparse, not a plain file")
        if not member.plain:
            continue
        if _holds_image(file, member) if verdict is None else verdict:
            yield member
        else:
            skipped[ending_of(name)] += 1


def _holds_image(file: BinaryIO, member: Member) -> bool:
    head = os.pread(file.fileno(), min(MAGIC_BYTES, member.size), member.offset)
    return format_of(head) is not None
