"""The common form of all layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.sources.catalogue import Catalogue, Found
from preprocess.sources.skipping import Skipped


@dataclass(frozen=True)
class SourceOptions:
    """The options that choose the images of an input folder, and their splits."""

    layout: str = "auto"
    """Layout of the folder; `auto` detects it."""
    val_fraction: float | None = None
    """Fraction of each class to keep for val, rounded, but at least 1 image of a class that has 2; 0 leaves val empty.
    None where the folder has its own val split."""
    seed: int = 0
    """Decides which images are kept for val."""
    test_as_val: bool = False
    """Use the test split as val, in a folder without val."""
    splits: tuple[str, ...] | None = None
    """The splits to build; None for all that are there, with train and val among them."""
    classes: Path | None = None
    """A data set, or a file of class ids, whose classes the images get."""
    labels: Path | None = None
    """A file with the labels of the images, in the input folder or elsewhere."""
    image_column: str | None = None
    """The column of a table with the images, or the names of their files; None for one that is usual."""
    label_column: str | None = None
    """The column of a table with the labels; None for one that is usual."""


@dataclass(frozen=True)
class Container:
    """A file of the input folder whose images have to be unpacked before they can be read."""

    file: str
    """Relative to the input folder."""
    rows: int
    read: Callable[[Path], Iterator[bytes]]
    """Function that yields the image file of each row; on module level, so that it can be pickled."""


@dataclass(frozen=True)
class Listing:
    """The images of an input folder as its layout finds them, before val is divided from train."""

    names: Mapping[str, str]
    """Class id -> name."""
    found: Mapping[str, Iterable[Found]]
    """Split -> its images; each is iterated at most once, and checked then."""
    containers: tuple[Container, ...] = ()
    ignored: tuple[str, ...] = ()
    """Ignored folders, or other groups of images, perhaps with the reason."""
    skipped: Skipped = field(default_factory=Skipped)
    """Files that are no images; complete once all of `found` is iterated."""
    is_split: bool = True
    """False if nothing says of which split the images are; `found` then has them as train."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Split -> what would have to be there for it."""


@dataclass(frozen=True)
class Source:
    """The content of an input folder."""

    root: Path
    """The input folder."""
    catalogue: Catalogue
    splits: tuple[str, ...]
    """The splits to build, of `SPLITS`; val may be empty."""
    containers: tuple[Container, ...] = ()
    ignored: tuple[str, ...] = ()
    """Ignored folders, or other groups of images, perhaps with the reason."""
    skipped: Skipped = field(default_factory=Skipped)
    """Files that are no images."""
