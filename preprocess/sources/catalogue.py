"""The catalogue of a source: its classes, and the split, label, name and location of each image."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from errors import InputError
from preprocess.manifest import ClassEntry

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")


# Named tuples, without a dict each and quick to make: a catalogue of ImageNet has 1.3 million images.
class FileRef(NamedTuple):
    """An image that is a file of its own."""

    file: str
    """Relative to the input folder, `/` between the parts."""


class ArchiveRef(NamedTuple):
    """An image that lies uncompressed inside an archive."""

    file: str
    """The archive, relative to the input folder."""
    offset: int
    """Of the image's first byte in the outermost archive."""
    size: int
    """In bytes."""


class RowRef(NamedTuple):
    """An image that is a row of a container, to be unpacked first."""

    file: str
    """The container, relative to the input folder."""
    row: int
    """From 0."""


ImageRef = FileRef | ArchiveRef | RowRef


class RawImage(NamedTuple):
    """One raw image."""

    split: str
    label: int
    """Index in the sorted class ids."""
    canonical_name: str
    """`<split>/<class>/<file>` as a rule; it determines key and order in every layout."""
    ref: ImageRef
    """Location of the bytes."""


Found = tuple[str, str, str, ImageRef]
"""An image before classes are numbered: split, class id, canonical name, location."""


@dataclass(frozen=True)
class Catalogue:
    """All raw images of a source: classes sorted by id, images sorted by canonical name."""

    classes: tuple[ClassEntry, ...]
    images: tuple[RawImage, ...]

    @staticmethod
    def of(names: Mapping[str, str], found: Iterable[Found], required: str | None = "train") -> Catalogue:
        """Number the classes and sort the images.

        Args:
            names: class id -> name; every class of `found` is in it.
            found: the images, in any order.
            required: the split in which every class must have an image, if there is one.

        Raises:
            InputError: a duplicate canonical name, two classes with the same text, or a class without a required image.
        """
        ids = sorted(names)
        label = {name: number for number, name in enumerate(ids)}
        images = [RawImage(split, label[class_id], name, ref) for split, class_id, name, ref in found]
        images.sort(key=attrgetter("canonical_name"))
        for number in range(1, len(images)):
            if images[number].canonical_name == images[number - 1].canonical_name:
                raise InputError(f"image {printable(images[number].canonical_name)!r} is there twice")
        there = {image.label for image in images if image.split == required}
        for name in ids:
            if required is not None and label[name] not in there:
                raise InputError(f"class {printable(name)!r} has no image in the {required} split")
        entries = tuple(ClassEntry(id=printable(name), name=printable(names[name])) for name in ids)
        for entry, times in Counter(entry.id for entry in entries).items():
            if times > 1:
                raise InputError(f"{times} classes are {entry!r} in text: their names are no UTF-8, rename one")
        return Catalogue(entries, tuple(images))

    def split(self, name: str) -> list[RawImage]:
        """Return the images of one split."""
        return [image for image in self.images if image.split == name]


def shuffle_key(purpose: str, seed: int, canonical_name: str) -> bytes:
    """Return the sort key of an image for a seeded shuffle; it does not depend on the other images."""
    return hashlib.blake2b(os.fsencode(f"{purpose} {seed} {canonical_name}"), digest_size=16).digest()


def printable(name: str) -> str:
    """Return a file's name as text that UTF-8 can hold: undecodable bytes become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
