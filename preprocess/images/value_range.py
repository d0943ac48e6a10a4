"""Images of more than 8 bits a channel, or of floating point: their way to 8 bits.

Of 16 bits, the upper 8 are kept. Floating-point and 32-bit files do not say which values are black and white: without a
range from the user, they are refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

ValueRange = tuple[float, float]
"""The values that become black and white."""

LARGEST_OF_12_BITS = 4095
"""16-bit files whose values stay below hold 12-bit data: the upper 8 bits have 16 levels of it."""


FEW_LEVELS = 16
"""Grey levels that are left of 12 bits in 16 bits; an image with no more has lost nearly all that it shows."""


class RangeUse(NamedTuple):
    """The part of a value range that an image uses."""

    smallest: float
    largest: float
    levels: float
    """Number of grey levels, at most, between the smallest and the largest value in the range."""
    clipped: float
    """Fraction of the values outside of the range, 0 to 1."""


class ValueRangeError(ValueError):
    """Values that cannot be brought to 8 bits; the message is the reason."""


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the pixels in the file of an image that is not loaded, e.g. `RGB;16B`; else its mode."""
    tiles = getattr(image, "tile", ())  # of images from files only
    arguments = tiles[0][3] if tiles else image.mode
    return str(arguments if isinstance(arguments, str) else arguments[0])


def is_deep(image: Image.Image) -> bool:
    """Return True for an image whose pixels Pillow holds in more than 8 bits: modes `I`, `I;16` and `F`."""
    return image.mode[:1] in "IF"


def check_range(image: Image.Image, raw: str, value_range: ValueRange | None) -> None:
    """Raise `ValueRangeError` unless the values of black and white are known, for a loaded image, `raw` in its file."""
    if value_range is None:
        if image.mode == "F":
            raise ValueRangeError("floating-point values, whose range nothing tells; use --value-range LOW HIGH")
        if image.mode == "I" and image.format == "TIFF":
            raise ValueRangeError("signed or 32-bit values, whose range nothing tells; use --value-range LOW HIGH")
    elif ";16" in raw and not is_deep(image):
        raise ValueRangeError("16-bit colours, of which Pillow keeps 8 bits; --value-range is for one channel only")
    elif is_deep(image):
        low, high = value_range
        smallest, largest = _extrema(image)
        if largest < low or smallest > high:
            raise ValueRangeError(f"values {smallest:g} to {largest:g}, all outside of --value-range {low:g} {high:g}")


def range_use(image: Image.Image, value_range: ValueRange) -> RangeUse:
    """Return the part of the range that a deep, loaded image uses."""
    (low, high), values = value_range, np.asarray(image)
    smallest, largest = float(values.min()), float(values.max())
    levels = (min(largest, high) - max(smallest, low)) * 255 / (high - low) + 1
    # One comparison at a time: an image may fill a worker's memory.
    outside = np.count_nonzero(values < low) + np.count_nonzero(values > high)
    return RangeUse(smallest, largest, levels, float(outside / values.size))


def to_8_bits(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Return a deep image, or a part of one, as mode `L`; values outside of the range are cut off.

    Raises:
        ValueRangeError: a value is not a finite number.
    """
    if value_range is None:
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    (low, high), values = value_range, np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise ValueRangeError("values that are not finite numbers")
    return Image.fromarray(((values.clip(low, high) - low) * (255 / (high - low)) + 0.5).astype(np.uint8))


def largest_value(image: Image.Image, raw: str) -> int | None:
    """Return a bound of the values of a loaded image of 16 bits a channel, `raw` in its file; None for other depths."""
    if is_deep(image):
        return int(_extrema(image)[1])
    if ";16" in raw:  # of colours, Pillow has kept the upper byte only
        return max(256 * int(_extrema(band)[1]) + 255 for band in image.split())
    return None


def _extrema(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    return float(values.min()), float(values.max())
