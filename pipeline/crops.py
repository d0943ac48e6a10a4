"""The window that is cut out of an image, from its size and the epoch's random numbers.

Everything is an array over the images of a batch, (y, x) and (height, width) in pixels, int32 n,2. Where a margin is
odd, centres are rounded as torchvision's CenterCrop does, halves to even: the centre crop is CenterCrop(short_side),
then CenterCrop(crop).
"""

from __future__ import annotations

import numpy as np

LARGEST_AREA = 1.0
RATIOS = (3 / 4, 4 / 3)
"""A resized crop has at most this part of the area, and width / height between these: torchvision's defaults."""


def default_crop(short_side: int) -> int:
    """Return the side of the crops where none is asked for, 7/8 of the short side: the 224 of 256 of 2012."""
    return short_side * 7 // 8


def square_corners(sizes: np.ndarray, short_side: int) -> np.ndarray:
    """Return the corner of each image's central square."""
    margin = sizes - short_side
    return ((margin + (margin // 2 & 1)) // 2).astype(np.int32)


def centre_corners(sizes: np.ndarray, short_side: int, crop: int) -> np.ndarray:
    """Return the corner of each image's centre crop."""
    return square_corners(sizes, short_side) + np.int32(round((short_side - crop) / 2))


def view_corners(slack: int, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the views that evaluation takes of a square, in the order of torchvision's TenCrop.

    Args:
        slack: side of the square minus side of a view.
        crops: 1 for the centre, 10 for four corners and centre, then those of the mirrored square.

    Returns:
        The corner of each view before it is mirrored, int32 crops,2; 1 for a mirrored one, int32 crops.
    """
    centre = round(slack / 2)
    if crops == 1:
        return np.array([[centre, centre]], np.int32), np.zeros(1, np.int32)
    corners = [(0, 0), (0, slack), (slack, 0), (slack, slack), (centre, centre)]
    mirrored = [(y, slack - x) for y, x in corners]
    return np.array(corners + mirrored, np.int32), np.repeat(np.arange(2, dtype=np.int32), 5)


def relative_offsets(corners: np.ndarray, sizes: np.ndarray, shapes: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Return where windows lie as DALI's crops take it: from the top and from the left, float32 n each.

    They are parts of the room that a window of `shapes` (or the side of a square) leaves in its image, 0 to 1: DALI
    multiplies and rounds to the nearest pixel, which is the corner again, since no image has room for 2^23 pixels.
    """
    top, left = np.ascontiguousarray((corners / np.maximum(sizes - shapes, 1)).T, np.float32)
    return top, left


def random_corners(extents: np.ndarray, shapes: np.ndarray, crop_fractions: np.ndarray) -> np.ndarray:
    """Return corners within `extents`, both ends included, equally likely where fractions are uniform in [0, 1)."""
    return (crop_fractions * (extents - shapes + 1)).astype(np.int32)


def resized_shapes(extents: np.ndarray, attempts: np.ndarray, smallest_area: float) -> np.ndarray:
    """Return height and width of the windows of torchvision's RandomResizedCrop.

    The first attempt that fits is taken: area uniform in [smallest_area, 1] of all, width / height log-uniform
    in [3/4, 4/3]. Where none fits, it is the largest window within these ratios.

    Args:
        extents: height and width that the window must lie in.
        attempts: uniform in [0, 1), n,k,2: for area and ratio of each of k attempts.
        smallest_area: a fraction of the area of `extents`, above 0 up to 1.
    """
    height, width = extents[:, None, 0], extents[:, None, 1]
    area = height * width * (smallest_area + attempts[..., 0] * (LARGEST_AREA - smallest_area))
    low, high = np.log(RATIOS)
    ratio = np.exp(low + attempts[..., 1] * (high - low))
    shapes = np.stack([np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))], axis=-1).astype(np.int32)
    fits: np.ndarray = np.all((shapes > 0) & (shapes <= extents[:, None]), axis=-1)
    first = fits.argmax(axis=1)
    chosen = shapes[np.arange(len(shapes)), first]
    tallest_and_widest = np.hstack([np.rint(width / RATIOS[0]), np.rint(height * RATIOS[1])])
    largest = np.minimum(extents, tallest_and_widest)
    return np.where(np.any(fits, axis=1)[:, None], chosen, largest).astype(np.int32)
