"""The feature maps of one image through the layers, as pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

MAPS = 16
"""Maps of a layer that are shown: those with the strongest mean response."""
MAP_PIXELS = 66
GAP = 6


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer for one image: float32 (C, h, w), not negative."""

    name: str
    maps: np.ndarray

    @property
    def title(self) -> str:
        """The layer, its maps, and how many of them the image excites."""
        channels, height, width = self.maps.shape
        active = int((self.maps > 0).any(axis=(1, 2)).sum())
        return f"{self.name}: {channels} maps of {height} × {width}, {active} with a response"


def strongest(layer: LayerMaps) -> np.ndarray:
    """Return the indices of up to `MAPS` maps with the largest mean, the largest first."""
    return np.argsort(-layer.maps.mean(axis=(1, 2)), kind="stable")[:MAPS]


def maps_grid(layer: LayerMaps) -> Image.Image:
    """Return the strongest maps of a layer side by side, RGBA, transparent in between; black is 0, white each largest.

    A map is enlarged by an integer factor, to at most `MAP_PIXELS` where it is smaller.
    """
    chosen = layer.maps[strongest(layer)]
    largest = chosen.max(axis=(1, 2), keepdims=True)
    levels = np.rint(255 * chosen / np.where(largest > 0, largest, 1)).astype(np.uint8)
    height, width = (side * max(1, MAP_PIXELS // max(levels.shape[1:])) for side in levels.shape[1:])
    grid = Image.new("RGBA", (len(levels) * (width + GAP) - GAP, height))
    for number, tile in enumerate(levels):
        grid.paste(Image.fromarray(tile).resize((width, height), Image.Resampling.NEAREST), (number * (width + GAP), 0))
    return grid
