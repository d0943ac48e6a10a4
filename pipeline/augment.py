"""What training does to an image beyond cutting it out, as arithmetic on arrays: which switches there are,
and how far the lighting noise shifts a colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pipeline.checks import check_choice
from pipeline.epoch import EpochPlan
from preprocess.manifest import Rgb

CropPosition = Literal["random", "centre"]
Lighting = Literal["paper", "code-2012", "off"]
Units = Literal["grey", "unit-std"]

LIGHTING_STD = 0.1
"""Standard deviation of the lighting noise, in the paper (section 4.1) and in the released code alike."""

CODE_2012_DIVISOR = 1.1
"""The released code divides an image that got lighting noise by this, in training alone."""


@dataclass(frozen=True)
class Augmentation:
    """The switches of 2012; the defaults are what the paper says (section 4.1).

    Raises:
        InputError: a field has a value that is not one of its valid ones.
    """

    crop_position: CropPosition = "random"
    """`random`: every offset inside the central square, both ends included, is equally likely."""
    flip: bool = True
    """Mirror half of the images left to right."""
    lighting: Lighting = "paper"
    """Noise along the principal components of the training set's colours, one shift for all pixels of an image:
    `paper` draws it from the eigenvalues of 0-1 pixels, `code-2012` from their square roots and then divides the
    image by 1.1, as the code released with the paper does."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_choice("crop_position", self.crop_position, get_args(CropPosition))
        check_choice("flip", self.flip, (True, False))
        check_choice("lighting", self.lighting, get_args(Lighting))


def lighting_shift(normals: np.ndarray, rgb: Rgb, lighting: Lighting) -> np.ndarray:
    """Return what lighting noise adds to every pixel of an image, float32 n,3 in grey levels (0-255 units).

    With V the eigenvectors and lambda the eigenvalues of the manifest, `paper` is V (0.1 z * lambda / 255), since
    the paper's eigenvalues are those of 0-1 pixels, and `code-2012` is 0.1 V (z * sqrt(lambda)).

    Args:
        normals: standard normal z, n,3: one number per principal component, largest first.
        rgb: the colour statistics of the training set.
        lighting: which of the two, or `off` for zeros.
    """
    if lighting == "off":
        return np.zeros((len(normals), 3), np.float32)
    eigenvalues = np.asarray(rgb.eigenvalues)
    scale = eigenvalues / 255 if lighting == "paper" else np.sqrt(np.maximum(eigenvalues, 0))
    components = np.asarray(rgb.eigenvectors) * (LIGHTING_STD * scale)
    return (normals @ components.T).astype(np.float32)


def divisor(rgb: Rgb, units: Units, lighting: Lighting = "off") -> list[float]:
    """Return what each channel is divided by after the mean is subtracted: 3 numbers in grey levels.

    `grey` leaves grey levels, `unit-std` divides by the standard deviation of the training set's pixels.
    """
    check_choice("units", units, get_args(Units))
    std = np.sqrt(np.diagonal(np.asarray(rgb.covariance))) if units == "unit-std" else np.ones(3)
    return (std * (CODE_2012_DIVISOR if lighting == "code-2012" else 1.0)).tolist()


def graph_arguments(
    plan: EpochPlan, augmentation: Augmentation, rgb: Rgb, slack: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn an epoch's random numbers into what the training graph is given for each position.

    Returns:
        The crop's corner within the central square (int32 n,2), whether to mirror (int32 n), and what to subtract
        from each channel (float32 n,3).
    """
    offsets = plan.offsets if augmentation.crop_position == "random" else np.full_like(plan.offsets, round(slack / 2))
    flips = plan.flips if augmentation.flip else np.zeros_like(plan.flips)
    means = np.asarray(rgb.mean, np.float32) - lighting_shift(plan.normals, rgb, augmentation.lighting)
    return offsets, flips, means
