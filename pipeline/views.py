"""The views of an image that a loader hands out: size, number, mean and units."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from errors import InputError, check_choice
from object_store import read_file
from pipeline.crops import default_crop
from preprocess.manifest import ColorStats

Units = Literal["grey", "unit", "unit-std", "torchvision"]
Mean = Literal["channel", "image"]

TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_STD = (0.229, 0.224, 0.225)
"""Of the channels, of pixels from 0 to 1: what torchvision's published weights of ImageNet were trained with."""


@dataclass(frozen=True)
class ViewSpec:
    """The views of an image and their units."""

    short_side: int
    """Of the images, in pixels."""
    crop: int
    """Side of a view, in pixels."""
    crops: int
    """Views of each image: 1 or 10."""
    color_stats: ColorStats
    units: Units
    mean_crop: np.ndarray | None
    """Central crop of the mean image, float32 3,crop,crop, subtracted from every window and never flipped, as in the
    released code; None for the channel mean."""

    @property
    def eval_window(self) -> int:
        """Side of the central window that evaluation's views are cut from, in pixels."""
        return self.crop if self.crops == 1 else self.short_side

    @property
    def channel_mean(self) -> np.ndarray:
        """Subtracted from each channel, float64 3 in grey levels; zeros where it is the mean image."""
        if self.mean_crop is not None:
            return np.zeros(3)
        return 255 * np.array(TORCHVISION_MEAN) if self.units == "torchvision" else np.array(self.color_stats.mean)

    @property
    def divisor(self) -> np.ndarray:
        """Divisor of each channel after the mean is subtracted, float64 3 in grey levels."""
        match self.units:
            case "grey":
                return np.ones(3)
            case "unit":
                return np.full(3, 255.0)
            case "unit-std":
                return np.sqrt(np.diagonal(np.asarray(self.color_stats.covariance)))
            case "torchvision":
                return 255 * np.array(TORCHVISION_STD)


def make_view(
    short_side: int,
    color_stats: ColorStats,
    *,
    crop: int | None,
    crops: int,
    units: Units,
    mean_image: np.ndarray | None,
) -> ViewSpec:
    """Return the views that these arguments of `make_loader` describe; `mean_image` None subtracts the channel mean.

    Raises:
        InputError: an argument has no valid value.
    """
    side = default_crop(short_side) if crop is None else crop
    if not 1 <= side <= short_side:
        raise InputError(f"crop is {crop}: it is out of range; use 1 to {short_side}, the short side of the images")
    check_choice("crops", crops, (1, 10))
    check_units(units, "channel" if mean_image is None else "image")
    mean_crop = None
    if mean_image is not None:
        corner = round((short_side - side) / 2)
        window = mean_image[corner : corner + side, corner : corner + side]
        mean_crop = np.ascontiguousarray(window.transpose(2, 0, 1))
    return ViewSpec(short_side, side, crops, color_stats, units, mean_crop)


def check_units(units: Units, mean: Mean) -> None:
    """Raise `InputError` unless both are valid, and go together."""
    check_choice("units", units, get_args(Units))
    check_choice("mean", mean, get_args(Mean))
    if units == "torchvision" and mean == "image":
        raise InputError("units 'torchvision' have a mean of their own, and mean is 'image'; use mean 'channel'")


def read_mean_image(path: Path | str, short_side: int) -> np.ndarray:
    """Return the mean image of a training set at a path or URI, float32 short_side,short_side,3 in grey levels.

    Raises:
        InputError: no such file, or not an image of this size.
    """
    try:
        image = np.load(io.BytesIO(read_file(path)), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"mean image {path} cannot be read: {error}") from error
    shape = (short_side, short_side, 3)
    if image.shape != shape or image.dtype != np.float32 or not np.isfinite(image).all():
        raise InputError(f"mean image {path} is {image.dtype} of shape {image.shape}; use finite float32 of {shape}")
    return image
