"""Augmentation of training images: the switches, and the parameters that they give each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from errors import InputError, check_choice, check_count
from pipeline.balanced import BalancedPartition
from pipeline.crops import centre_corners, random_corners, resized_shapes, square_corners, view_corners
from pipeline.sampler import EpochDraws, Partition, draw_attempts, draw_epoch
from pipeline.views import ViewSpec
from preprocess.manifest import ColorStats

CropPosition = Literal["random", "centre"]
CropRegion = Literal["central-square", "whole-image"]
CropSize = Literal["fixed", "random"]
Granularity = Literal["image", "chunk"]
Lighting = Literal["paper", "code-2012", "off"]

LIGHTING_STD = 0.1
"""Standard deviation of the lighting noise, in the paper (section 4.1) and in the released code alike."""

CODE_2012_DIVISOR = 1 + LIGHTING_STD
"""The released code divides an image that got lighting noise by 1.1, only in training."""

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
            raise InputError(f"smallest_area is {self.smallest_area!r}; use above 0 up to 1")
        if self.crop_size == "fixed":
            self.require("crop_size 'fixed' does not read it", smallest_area=Augmentation.smallest_area)
        else:
            # A centre or a neighbour's offset says nothing of a window whose size is its own.
            self.require("crop_size 'random' does not read it", crop_position="random", granularity="image")
        if self.lighting_off_epoch is not None:
            check_count("lighting_off_epoch", self.lighting_off_epoch, 0)
        if self.lighting == "off":
            self.require("lighting is 'off' in all epochs", lighting_off_epoch=None)

    def require(self, reason: str, **valid: object) -> None:
        """Raise `InputError` with the reason unless these fields have these values."""
        for name, only in valid.items():
            if (value := getattr(self, name)) != only:
                raise InputError(f"{name} is {value!r}: {reason}; use {only}")

    def at(self, epoch: int) -> Augmentation:
        """Return what is done in one epoch: `lighting` is off where it is switched off by then."""
        off = self.lighting_off_epoch is not None and epoch >= self.lighting_off_epoch
        return replace(self, lighting="off" if off else self.lighting, lighting_off_epoch=None)


def lighting_shift(normals: np.ndarray, color_stats: ColorStats, lighting: Lighting) -> np.ndarray:
    """Return what lighting noise adds to every pixel of an image, float32 n,3 in grey levels (0-255 units).

    With V the eigenvectors and lambda the eigenvalues of the manifest, `paper` is V (0.1 z * lambda / 255), since
    the paper's eigenvalues are those of 0-1 pixels, and `code-2012` is 0.1 V (z * sqrt(lambda)). The standard normal z
    are `normals`, n,3: one number per principal component, largest first. `off` gives zeros.
    """
    if lighting == "off":
        return np.zeros((len(normals), 3), np.float32)
    eigenvalues = np.asarray(color_stats.eigenvalues)
    scale = eigenvalues / 255 if lighting == "paper" else np.sqrt(np.maximum(eigenvalues, 0))
    components = np.asarray(color_stats.eigenvectors) * (LIGHTING_STD * scale)
    return (normals @ components.T).astype(np.float32)


class AugmentParams(NamedTuple):
    """Augmentation parameters of n views."""

    corners: np.ndarray
    """int32 n,2: top left corner (y, x) of the crop in its image, in pixels."""
    shapes: np.ndarray
    """int32 n,2: height and width of the crop, in pixels."""
    flips: np.ndarray
    """int32 n: 1 for a mirrored crop, else 0."""
    means: np.ndarray
    """float32 n,3: subtracted from each channel, in grey levels."""
    divisors: np.ndarray
    """float32 n,3: what each channel is divided by after that."""


@dataclass(frozen=True)
class EpochPlan:
    """The order of one epoch, and the augmentation parameters of its batches."""

    order: np.ndarray
    """int64 n: sample by global position."""
    params: Callable[[slice, np.ndarray], AugmentParams]
    """Global positions of a batch, and height and width of its images (int n,2) -> the parameters of its views."""


@dataclass(frozen=True)
class AugmentSampler:
    """Draws the plan of a training epoch."""

    shard_samples: list[int]
    seed: int
    global_batch: int
    """Images of a batch of all ranks together."""
    view: ViewSpec
    augmentation: Augmentation
    partition: Partition | BalancedPartition | None
    """Of the samples among the ranks, where they are kept in a cache or classes are balanced."""

    def __call__(self, epoch: int) -> EpochPlan:
        """Draw one epoch."""
        augmentation, view = self.augmentation.at(epoch), self.view
        draws = draw_epoch(self.shard_samples, self.seed, epoch, view.short_side - view.crop, self.partition)
        if augmentation.granularity == "chunk":
            draws = draws.shared_by_chunks(self.global_batch, CHUNK_2012)
        flips = draws.flips if augmentation.flip else np.zeros_like(draws.flips)
        # Lighting noise is added to the image: it is subtracted from the mean.
        means = np.float32(view.channel_mean) - lighting_shift(draws.normals, view.color_stats, augmentation.lighting)
        divisor = np.float32(view.divisor * (CODE_2012_DIVISOR if augmentation.lighting == "code-2012" else 1))

        def params(positions: slice, sizes: np.ndarray) -> AugmentParams:
            windows = self._windows(epoch, draws, augmentation, positions, sizes)
            return AugmentParams(*windows, flips[positions], means[positions], np.tile(divisor, (len(sizes), 1)))

        return EpochPlan(draws.order, params)

    def _windows(
        self, epoch: int, draws: EpochDraws, augmentation: Augmentation, positions: slice, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return corners and shapes of the crops of images of these sizes."""
        short_side, crop = self.view.short_side, self.view.crop
        shapes = np.full_like(sizes, crop)
        if augmentation.crop_position == "centre":
            return centre_corners(sizes, short_side, crop), shapes
        if augmentation.crop_region == "whole-image":
            corners, extents = np.zeros_like(sizes), sizes
        else:
            corners, extents = square_corners(sizes, short_side), np.full_like(sizes, short_side)
        if augmentation.crop_size == "random":
            shapes = resized_shapes(extents, draw_attempts(self.seed, epoch, positions), augmentation.smallest_area)
        elif augmentation.crop_region == "central-square":
            return corners + draws.offsets[positions], shapes
        return corners + random_corners(extents, shapes, draws.crop_fractions[positions]), shapes


def eval_epoch_plan(samples: int, view: ViewSpec) -> EpochPlan:
    """Return the plan of evaluation: all samples in order, and the views of each image's central window.

    The parameters are for that window as the image; an image has `view.crops` of them.
    """
    corners, flips = view_corners(view.eval_window - view.crop, view.crops)
    shapes = np.full_like(corners, view.crop)
    colours = (np.tile(np.float32(values), (view.crops, 1)) for values in (view.channel_mean, view.divisor))
    views = (corners, shapes, flips, *colours)

    def params(_: slice, sizes: np.ndarray) -> AugmentParams:
        return AugmentParams(*(np.concatenate([values] * len(sizes)) for values in views))

    return EpochPlan(np.arange(samples), params)
