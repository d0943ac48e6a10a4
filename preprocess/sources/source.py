"""The common form of all layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocess.sources.catalogue import Catalogue


@dataclass(frozen=True)
class Container:
    """A file of the input folder whose images have to be unpacked before they can be read."""

    file: str
    """Relative to the input folder; no two containers have the same name."""
    rows: int
    read: Callable[[Path], Iterator[bytes]]
    """Function that yields the image file of each row; on module level, so that it can be pickled."""


@dataclass(frozen=True)
class Source:
    """The content of an input folder."""

    root: Path
    """The input folder."""
    catalogue: Catalogue
    containers: tuple[Container, ...] = ()
    ignored: tuple[str, ...] = ()
    """Ignored folders that may hold images."""
