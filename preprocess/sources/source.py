"""What every layout is read as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preprocess.sources.catalogue import Catalogue
from preprocess.sources.records import Container, UnpackTask


@dataclass(frozen=True)
class Source:
    """Raw images, and what has to be unpacked before they can be read."""

    root: Path
    """The input folder."""
    catalogue: Catalogue
    containers: tuple[Container, ...] = ()
    ignored: tuple[str, ...] = ()
    """Folders beside the splits that might hold images and are not looked at."""

    def unpack_tasks(self, scratch: Path) -> list[UnpackTask]:
        """Return the work that `unpack` has to do before images are read with this `scratch` folder.

        All images of the containers lie there afterwards, so that it takes the room that they take in the input.
        """
        return [UnpackTask(self.root, container, scratch) for container in self.containers]
