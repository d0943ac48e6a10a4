"""Integer sums over the pixels of one image: in C where the environment has the extension, else in NumPy.

Both give the same numbers. C makes one pass over the bytes; NumPy takes as long as decoding the image does.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import Any

import numpy as np
from PIL import Image

_extension: Any = None
with contextlib.suppress(ImportError):
    _extension = importlib.import_module("twotower_color_sums")  # color_sums.c, compiled by bootstrap.sh

PAIRS = np.triu_indices(3)
"""The two channels that each of the last six sums multiplies."""


def add_image(image: Image.Image, sums: np.ndarray, square: np.ndarray) -> None:
    """Add all pixels of an image to `sums`, and its central square, level by level, to `square`.

    The square lies where torchvision's CenterCrop cuts it: half of an odd margin is rounded to even.

    The image is RGB or RGBX, `sums` int64 (9,) of R, G, B, RR, RG, RB, GG, GB and BB, `square` uint16 (3, side, side).

    Raises:
        ValueError: the image is smaller than the square.
    """
    (width, height), side = image.size, square.shape[-1]
    if min(width, height) < side:
        raise ValueError(f"an image of {width}x{height} pixels has no square of {side}")
    top, left = round((height - side) / 2), round((width - side) / 2)
    if _extension is not None:
        _extension.add_image(_pixels(image), width, height, top, left, side, sums, square)
        return
    rows = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(height, width, 4)[:, :, :3]
    square += rows[top : top + side, left : left + side].transpose(2, 0, 1)
    # Exact: float64 holds every integer up to 2^53, and no image has 2^37 pixels.
    colours = rows.reshape(-1, 3).astype(np.float64)
    sums += np.concatenate([colours.sum(axis=0), (colours.T @ colours)[PAIRS]]).astype(np.int64)


def warn_if_slow() -> None:
    """Warn once, in the parent of the workers, where the extension is missing."""
    if _extension is None:
        warnings.warn(
            "twotower_color_sums is not in this environment: NumPy computes the colour statistics, which takes longer; "
            "run ./bootstrap.sh",
            stacklevel=2,
        )


def _pixels(image: Image.Image) -> object:
    """Return the pixels row by row, four bytes each: an Arrow capsule that borrows them where possible, else a copy.

    Pillow's images over 16 MiB lie in several pieces, and `frombuffer` borrows memory of others: those are copied.
    """
    # Rows may be padded where Pillow was told to align them.
    if not image.readonly and image.width * 4 % Image.core.get_alignment() == 0:
        with contextlib.suppress(AttributeError, ValueError):  # an older Pillow; pixels in several pieces
            _, array = image.__arrow_c_array__()
            return array
    return image.tobytes("raw", "RGBX")
