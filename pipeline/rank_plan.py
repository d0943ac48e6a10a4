"""The sampling and preprocessing plan of one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np

from errors import InputError
from pipeline.augment import Augmentation, Units, channel_mean, divisor
from pipeline.cache.formats import PixelFormat, Rgb888, YCbCr420
from pipeline.graphs import eval_graph, train_graph
from pipeline.inputs import AugmentSampler, EpochPlan, cached_eval_epoch_plan, eval_epoch_plan
from pipeline.reading.dali_stream import Graph
from pipeline.reading.samples import Samples
from pipeline.sampler import Partition, RankSlice
from preprocess.manifest import ColorStats


@dataclass(frozen=True)
class ViewSpec:
    """The views of an image and their units."""

    short_side: int
    """Of the images, in pixels."""
    crop: int
    """Side of what is handed out, in pixels."""
    crops: int
    """Views of each image: 1 or 10."""
    color_stats: ColorStats
    units: Units
    mean_crop: np.ndarray | None
    """Mean image to subtract, float32 3,crop,crop; None for the channel mean."""

    def eval_graph(self) -> Graph:
        """Return the graph of evaluation, but for what `pipeline.reading.dali_stream.Graph` adds and where it runs."""
        return partial(
            eval_graph,
            short_side=self.short_side,
            crop=self.crop,
            crops=self.crops,
            mean=channel_mean(self.color_stats, self.units),
            mean_crop=self.mean_crop,
            divisor=divisor(self.color_stats, self.units),
        )

    @property
    def eval_window(self) -> int:
        """Side of the central window that evaluation's views are cut from."""
        return self.crop if self.crops == 1 else self.short_side


@dataclass(frozen=True)
class RankPlan:
    """The plan of one rank: its samples, their order, and the graph that makes batches of them."""

    rank_slice: RankSlice
    inputs: Callable[[int], EpochPlan]
    """The plan of an epoch by its number: for `graph`, or for the pass over a cache."""
    order: Literal["shards", "permutation", "stored"]
    """Shuffled within groups of shards, permuted as a whole, or as stored: part of what a loader's state must match."""
    endless: bool
    """Read the next epoch's first samples while the last batches of this one are decoded."""
    graph: Graph
    """Makes batches without a cache."""
    pixel_format: PixelFormat
    """Format in which a cache keeps the central window of an image."""
    members: np.ndarray
    """The samples that a cache keeps, int64, ascending; none without a cache."""


def train_rank_plan(
    samples: Samples,
    view: ViewSpec,
    augmentation: Augmentation,
    seed: int,
    *,
    cached: bool,
    batch_size: int,
    rank: int,
    world_size: int,
) -> RankPlan:
    """Return what a rank does in training.

    Raises:
        InputError: ranks or batch size are not valid, or what a cache keeps is not enough for the augmentation.
    """
    rank_slice = RankSlice.of_training(len(samples), batch_size, rank, world_size)
    partition = Partition(len(samples), batch_size, world_size, seed) if cached else None
    if cached:
        _check_fits_cache(augmentation)
    inputs = AugmentSampler(
        shard_samples=samples.shard_samples,
        seed=seed,
        global_batch=batch_size * world_size,
        short_side=view.short_side,
        crop=view.crop,
        augmentation=augmentation,
        color_stats=view.color_stats,
        units=view.units,
        mean="channel" if view.mean_crop is None else "image",
        partition=partition,
    )
    resized = augmentation.crop_size == "random"
    return RankPlan(
        rank_slice=rank_slice,
        inputs=lru_cache(maxsize=2)(inputs),  # the decoding and the pass of a cache ask for the same epoch
        order="shards" if partition is None else "permutation",
        endless=True,
        graph=partial(train_graph, crop=view.crop, resized=resized, mean_crop=view.mean_crop),
        pixel_format=YCbCr420(view.short_side),
        members=np.arange(0) if partition is None else partition.members(rank),
    )


def eval_rank_plan(
    samples: Samples, view: ViewSpec, *, cached: bool, batch_size: int, rank: int, world_size: int
) -> RankPlan:
    """Return what a rank does in evaluation: with a cache, on the very pixels that it would decode.

    Raises:
        InputError: ranks or batch size are not valid.
    """
    rank_slice = RankSlice.of_evaluation(len(samples), batch_size, rank, world_size)
    mean = np.asarray(channel_mean(view.color_stats, view.units) if view.mean_crop is None else (0, 0, 0), np.float32)
    divisors = np.asarray(divisor(view.color_stats, view.units), np.float32)
    window = view.eval_window
    kept = cached_eval_epoch_plan(len(samples), window - view.crop, view.crops, mean, divisors)
    decoded = eval_epoch_plan(len(samples), view.short_side, window)
    return RankPlan(
        rank_slice=rank_slice,
        inputs=lambda _epoch: kept if cached else decoded,
        order="stored",
        endless=False,
        graph=view.eval_graph(),
        pixel_format=Rgb888(window),
        members=np.arange(rank_slice.first, rank_slice.end) if cached else np.arange(0),
    )


def _check_fits_cache(augmentation: Augmentation) -> None:
    for name, valid, reason in (
        ("crop_region", "central-square", "it keeps only the central squares of the images"),
        ("crop_size", "fixed", "its pass does not resize"),
    ):
        if (value := getattr(augmentation, name)) != valid:
            raise InputError(f"{name} is {value!r}; valid with a cache: {valid}, since {reason}")
