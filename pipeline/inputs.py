"""Per-image augmentation parameters of a batch: crops, flips and colour shifts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.augment import CHUNK_2012, Augmentation, Mean, Units, channel_mean, divisor, lighting_shift
from pipeline.crops import (
    centre_corners,
    random_corners,
    relative_offsets,
    resized_shapes,
    square_corners,
    view_corners,
)
from pipeline.sampler import EpochDraws, Partition, draw_attempts, draw_epoch
from preprocess.manifest import ColorStats

AugmentParams = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class EpochPlan:
    """One epoch: which samples, and how a batch of them is to be treated."""

    order: np.ndarray
    """int64 n: which sample, by global position."""
    arguments: Callable[[slice, np.ndarray], AugmentParams]
    """Global positions of a batch, and height and width of its images (int n,2) -> what the graph is given."""


@dataclass(frozen=True)
class AugmentSampler:
    """Makes the inputs of `train_graph`, or of the pass over a cache, for an epoch."""

    shard_samples: list[int]
    seed: int
    global_batch: int
    """Images of a batch of all ranks together."""
    short_side: int
    crop: int
    augmentation: Augmentation
    color_stats: ColorStats
    units: Units
    mean: Mean
    partition: Partition | None = None
    """Of the samples among the ranks, where they are kept in a cache."""

    def __call__(self, epoch: int) -> EpochPlan:
        """Draw one epoch."""
        augmentation = self.augmentation.at(epoch)
        plan = draw_epoch(self.shard_samples, self.seed, epoch, self.short_side - self.crop, self.partition)
        if augmentation.granularity == "chunk":
            plan = plan.shared_by_chunks(self.global_batch, CHUNK_2012)
        flips, shifts = self._flips_and_shifts(plan, augmentation)
        divisors = np.asarray(divisor(self.color_stats, self.units, augmentation.lighting), np.float32)

        def arguments(positions: slice, sizes: np.ndarray) -> AugmentParams:
            windows = self._windows(epoch, plan, augmentation, positions, sizes)
            if self.partition is None:
                windows = _to_graph_arguments(windows, sizes, self.crop)
            return *windows, flips[positions], shifts[positions], np.tile(divisors, (len(sizes), 1))

        return EpochPlan(plan.order, arguments)

    def _flips_and_shifts(self, plan: EpochDraws, augmentation: Augmentation) -> AugmentParams:
        """Return for each position of an epoch whether it is mirrored (int32 n), and what is subtracted from its
        channels (float32 n,3: channel mean, if it is that, less the lighting noise).
        """
        flips = plan.flips if augmentation.flip else np.zeros_like(plan.flips)
        means = np.asarray(
            channel_mean(self.color_stats, self.units) if self.mean == "channel" else (0, 0, 0), np.float32
        )
        shifts = means - lighting_shift(plan.normals, self.color_stats, augmentation.lighting)
        return flips, shifts

    def _windows(
        self, epoch: int, plan: EpochDraws, augmentation: Augmentation, positions: slice, sizes: np.ndarray
    ) -> AugmentParams:
        """Return the windows' corners, and for windows of random size their height and width."""
        if augmentation.crop_position == "centre":
            return (centre_corners(sizes, self.short_side, self.crop),)
        whole = augmentation.crop_region == "whole-image"
        corners = np.zeros_like(sizes) if whole else square_corners(sizes, self.short_side)
        extents = sizes if whole else np.full_like(sizes, self.short_side)
        crop_fractions = plan.crop_fractions[positions]
        if augmentation.crop_size == "random":
            shapes = resized_shapes(extents, draw_attempts(self.seed, epoch, positions), augmentation.smallest_area)
            return corners + random_corners(extents, shapes, crop_fractions), shapes
        if whole:
            return (random_corners(extents, self.crop, crop_fractions),)
        return (corners + plan.offsets[positions],)


def _to_graph_arguments(windows: AugmentParams, sizes: np.ndarray, crop: int) -> AugmentParams:
    """Return the places of windows, and heights and widths of those that have a shape of their own."""
    corners, *shapes = windows
    own = tuple(np.ascontiguousarray(shapes[0].T, np.float32)) if shapes else ()
    return *relative_offsets(corners, sizes, shapes[0] if shapes else crop), *own


def central_windows(sizes: np.ndarray, short_side: int, side: int) -> AugmentParams:
    """Return the places of the central windows of `side` pixels, as the graphs take them."""
    return relative_offsets(centre_corners(sizes, short_side, side), sizes, side)


def eval_epoch_plan(samples: int, short_side: int, side: int) -> EpochPlan:
    """Return the inputs of `eval_graph`: all samples in order, of each the central window of `side` pixels."""
    return EpochPlan(np.arange(samples), lambda _, sizes: central_windows(sizes, short_side, side))


def cached_eval_epoch_plan(samples: int, slack: int, crops: int, means: np.ndarray, divisors: np.ndarray) -> EpochPlan:
    """Return the inputs of the pass over a cache in evaluation: all samples in order, `crops` views of each.

    Args:
        samples: how many.
        slack: side of the squares minus side of a view, in pixels.
        crops: 1 or 10.
        means: what is subtracted from each channel, float32 3.
        divisors: what each channel is then divided by, float32 3.
    """
    views = (*view_corners(slack, crops), np.tile(means, (crops, 1)), np.tile(divisors, (crops, 1)))

    def arguments(_: slice, sizes: np.ndarray) -> AugmentParams:
        return tuple(np.concatenate([values] * len(sizes)) for values in views)

    return EpochPlan(np.arange(samples), arguments)
