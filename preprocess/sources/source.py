"""The common form of all layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preprocess.sources.catalogue import Catalogue
from preprocess.sources.records import Container, UnpackTask


@dataclass(frozen=True)
class Source:
    """Raw images, and the containers to unpack before they can be read."""

    root: Path
    """The input folder."""
    catalogue: Catalogue
    containers: tuple[Container, ...] = ()
    ignored: tuple[str, ...] = ()
    """Ignored folders that may hold images."""

    def unpack_tasks(self, scratch: Path) -> list[UnpackTask]:
        """Return the tasks of `unpack` to run before images are read with this `scratch` folder.

        It takes as much disk as the images take in the input.
        """
        return [UnpackTask(self.root, container, scratch) for container in self.containers]
