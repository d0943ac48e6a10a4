"""The augmentation of training images: its switches, and the arithmetic of the lighting noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from errors import InputError, check_choice, check_count
from preprocess.manifest import ColorStats

CropPosition = Literal["random", "centre"]
CropRegion = Literal["central-square", "whole-image"]
CropSize = Literal["fixed", "random"]
Granularity = Literal["image", "chunk"]
Lighting = Literal["paper", "code-2012", "off"]
Units = Literal["grey", "unit", "unit-std", "torchvision"]
Mean = Literal["channel", "image"]

LIGHTING_STD = 0.1
"""Standard deviation of the lighting noise, in the paper (section 4.1) and in the released code alike."""

CODE_2012_DIVISOR = 1 + LIGHTING_STD
"""The released code divides an image that got lighting noise by 1.1, only in training."""

TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_STD = (0.229, 0.224, 0.225)
"""Of the channels, of pixels from 0 to 1: what torchvision's published weights of ImageNet were trained with."""

CHUNK_2012 = 32
"""Consecutive images of a batch that share a crop offset and a flip in the released code."""


@dataclass(frozen=True)
class Augmentation:
    """The switches of 2012 and of later; the defaults are what the paper says (section 4.1).

    All random numbers are a function of (seed, epoch, position): what is switched off changes nothing else.

    Raises:
        InputError: a field has a value that is not one of its valid ones, or two fields contradict each other.
    """

    crop_position: CropPosition = "random"
    """`random`: every offset inside the region, both ends included, is equally likely. `centre`: the crop that
    evaluation takes."""
    crop_region: CropRegion = "central-square"
    """Region of a random crop: the central square of the short side, as in 2012, or the whole image."""
    crop_size: CropSize = "fixed"
    """`fixed`: windows as large as the network's input. `random`: windows of random area and shape, resized to it, as
    torchvision's RandomResizedCrop (ratio 3/4 to 4/3, bilinear, antialiased) does."""
    smallest_area: float = 0.08
    """For crops of random size: the smallest fraction of the region's area, above 0 up to 1; the largest is 1."""
    flip: bool = True
    """Mirror half of the images left to right."""
    granularity: Granularity = "image"
    """Images that share a crop position and a flip: none (`image`), or each `chunk` of 32 consecutive images of the
    global batch, as in the code released with the paper."""
    lighting: Lighting = "paper"
    """Noise along the principal components of the training set's colours, one shift for all pixels of an image:
    `paper` draws it from the eigenvalues of 0-1 pixels, `code-2012` from their square roots and then divides the
    image by 1.1, as the code released with the paper does."""
    lighting_off_epoch: int | None = None
    """First epoch (from 0) without lighting noise and without the division by 1.1, so that training images have the
    scale of evaluation. Default: noise in all epochs."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_choice("crop_position", self.crop_position, get_args(CropPosition))
        check_choice("crop_region", self.crop_region, get_args(CropRegion))
        check_choice("crop_size", self.crop_size, get_args(CropSize))
        check_choice("flip", self.flip, (True, False))
        check_choice("granularity", self.granularity, get_args(Granularity))
        check_choice("lighting", self.lighting, get_args(Lighting))
        if not 0 < self.smallest_area <= 1:
            raise InputError(f"smallest_area is {self.smallest_area!r}; valid: above 0 up to 1")
        if self.crop_size == "fixed" and self.smallest_area != Augmentation.smallest_area:
            raise InputError(
                f"smallest_area is {self.smallest_area}; valid with crop_size 'fixed', which does not read it: "
                f"{Augmentation.smallest_area}"
            )
        if self.crop_size == "random":
            # A centre or a neighbour's offset says nothing of a window whose size is its own.
            for name, valid in (("crop_position", "random"), ("granularity", "image")):
                if (value := getattr(self, name)) != valid:
                    raise InputError(f"{name} is {value!r}; valid with crop_size 'random': {valid}")
        if self.lighting_off_epoch is not None:
            check_count("lighting_off_epoch", self.lighting_off_epoch, 0)
            if self.lighting == "off":
                raise InputError(f"lighting_off_epoch is {self.lighting_off_epoch!r}; valid with lighting 'off': None")

    def at(self, epoch: int) -> Augmentation:
        """Return what is done in one epoch: `lighting` is off where it is switched off by then."""
        off = self.lighting_off_epoch is not None and epoch >= self.lighting_off_epoch
        return replace(self, lighting="off" if off else self.lighting, lighting_off_epoch=None)


def lighting_shift(normals: np.ndarray, color_stats: ColorStats, lighting: Lighting) -> np.ndarray:
    """Return what lighting noise adds to every pixel of an image, float32 n,3 in grey levels (0-255 units).

    With V the eigenvectors and lambda the eigenvalues of the manifest, `paper` is V (0.1 z * lambda / 255), since
    the paper's eigenvalues are those of 0-1 pixels, and `code-2012` is 0.1 V (z * sqrt(lambda)).

    Args:
        normals: standard normal z, n,3: one number per principal component, largest first.
        color_stats: the colour statistics of the training set.
        lighting: which of the two, or `off` for zeros.
    """
    if lighting == "off":
        return np.zeros((len(normals), 3), np.float32)
    eigenvalues = np.asarray(color_stats.eigenvalues)
    scale = eigenvalues / 255 if lighting == "paper" else np.sqrt(np.maximum(eigenvalues, 0))
    components = np.asarray(color_stats.eigenvectors) * (LIGHTING_STD * scale)
    return (normals @ components.T).astype(np.float32)


def channel_mean(color_stats: ColorStats, units: Units) -> list[float]:
    """Return what is subtracted from each channel, 3 grey levels: the training set's mean, or torchvision's own."""
    return [255 * mean for mean in TORCHVISION_MEAN] if units == "torchvision" else list(color_stats.mean)


def divisor(color_stats: ColorStats, units: Units, lighting: Lighting = "off") -> list[float]:
    """Return what each channel is divided by after the mean is subtracted: 3 numbers in grey levels.

    `grey` leaves grey levels, `unit` divides by 255, `unit-std` by the standard deviation of the training set's
    pixels, `torchvision` by its own.
    """
    whole = {
        "grey": np.ones(3),
        "unit": np.full(3, 255.0),
        "unit-std": np.sqrt(np.diagonal(np.asarray(color_stats.covariance))),
        "torchvision": 255 * np.asarray(TORCHVISION_STD),
    }
    return (whole[units] * (CODE_2012_DIVISOR if lighting == "code-2012" else 1.0)).tolist()


def check_units(units: Units, mean: Mean) -> None:
    """Raise `InputError` unless both are valid, and go together."""
    check_choice("units", units, get_args(Units))
    check_choice("mean", mean, get_args(Mean))
    if units == "torchvision" and mean == "image":
        raise InputError("mean is 'image'; valid with units 'torchvision', which has a mean of its own: channel")


def read_mean_image(path: Path, short_side: int) -> np.ndarray:
    """Return a training set's mean image, float32 short_side,short_side,3 in grey levels.

    Raises:
        InputError: no such file, or not an image of this size.
    """
    try:
        image = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"mean image {path} cannot be read: {error}") from error
    if image.shape != (short_side, short_side, 3) or image.dtype != np.float32 or not np.isfinite(image).all():
        raise InputError(
            f"mean image {path} has shape {image.shape} of {image.dtype}; valid: ({short_side}, {short_side}, 3) of "
            "finite float32"
        )
    return image


def mean_crop(mean_image: np.ndarray, crop: int) -> np.ndarray:
    """Return the central crop of the mean image as it is subtracted, float32 3,crop,crop.

    As in the released code it is the same for every window, wherever that was cut, and is never flipped.
    """
    corner = round((len(mean_image) - crop) / 2)
    return np.ascontiguousarray(mean_image[corner : corner + crop, corner : corner + crop].transpose(2, 0, 1))
