"""The stages of a batch on one rank, in training and in evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from pipeline.augment import Augmentation, AugmentSampler, EpochPlan, eval_epoch_plan
from pipeline.balanced import BalancedPartition
from pipeline.cache.formats import PixelFormat, Rgb888, YCbCr420
from pipeline.graphs import EvalGraph, Graph, TrainGraph
from pipeline.sampler import SHUFFLE_GROUP_SHARDS, Partition, RankSlice
from pipeline.views import ViewSpec

Order = Literal["shards", "permutation", "balanced", "balanced-parts", "stored"]
"""Shuffled within groups of shards; one permutation of all samples (of each rank's part, with several ranks); balanced
draws of all samples, or of each rank's part; as stored."""


@dataclass(frozen=True)
class RankPlan:
    """The samples of one rank, their order, and the stages that make batches of them."""

    rank_slice: RankSlice
    epoch_plan: Callable[[int], EpochPlan]
    """The plan of an epoch by its number."""
    order: Order
    """Part of what a loader's state must match."""
    read_across_epochs: bool
    """Read the next epoch's first samples while the last batches of this one are decoded."""
    graph: Graph
    """Makes batches without a cache."""
    pixel_format: PixelFormat
    """Format in which a cache keeps the central window of an image."""
    cached_samples: np.ndarray
    """The samples that a cache keeps, int64, ascending; none without a cache."""

    @property
    def shards_in_turns(self) -> int | None:
        """Most shards that the ranks of this machine read in turns; None: all of them."""
        match self.order:
            case "shards":
                return SHUFFLE_GROUP_SHARDS
            case "stored":
                return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun and Ray Train count them
            case _:
                return None


def make_rank_plan(
    shard_samples: list[int],
    view: ViewSpec,
    augmentation: Augmentation | None,
    seed: int,
    *,
    labels: np.ndarray | None,
    cached: bool,
    batch_size: int,
    rank: int,
    world_size: int,
) -> RankPlan:
    """Choose the stages of a rank's batches; with an augmentation for training, else for evaluation.

    With `labels`, int64 of each sample, training draws all classes equally often.

        stage       training                               evaluation                        code
        order       shuffled by (seed, epoch), or each     as stored                         sampler,
                    rank's part permuted for a cache,                                        balanced
                    or classes drawn equally often
        slice       the rank's part of a global batch      an equal part of all samples      sampler.RankSlice
        parameters  random crop, flip, lighting            centre crop or ten crops          augment, crops
        read        files, batches ahead, across epochs    the same, within an epoch         reading.read_ahead
        decode      TrainGraph: crop, flip, colours        EvalGraph: views, colours         graphs
        or cache    SquareGraph once, kept as YCbCr420,    SquareGraph once, kept as Rgb888, cache
                    then CropFlipNormalize                 then CropFlipNormalize
        mix         none yet; mixup would go here                                            loader.Loader

    A new stage takes its random numbers from the sampler, as a function of (seed, epoch, position): the peers of a
    tower must see the same batch, and numbers that are drawn in each worker would differ between them.

    Raises:
        InputError: ranks or batch size are not valid, or what a cache keeps is not enough for the augmentation.
    """
    samples = sum(shard_samples)
    if augmentation is not None:
        if cached:
            augmentation.require("the cache keeps only the central squares", crop_region="central-square")
            augmentation.require("the cache does not resize crops", crop_size="fixed")
        rank_slice = RankSlice.of_training(samples, batch_size, rank, world_size)
        order, partition = _choose_order(samples, seed, labels, cached, batch_size, world_size)
        sampler = AugmentSampler(shard_samples, seed, batch_size * world_size, view, augmentation, partition)
        return RankPlan(
            rank_slice=rank_slice,
            epoch_plan=lru_cache(maxsize=2)(sampler),  # the decoding and the pass of a cache ask for the same epoch
            order=order,
            read_across_epochs=True,
            graph=TrainGraph(view, resized=augmentation.crop_size == "random"),
            pixel_format=YCbCr420(view.short_side),
            cached_samples=partition.members(rank) if partition and cached else np.arange(0),
        )
    rank_slice = RankSlice.of_evaluation(samples, batch_size, rank, world_size)
    plan = eval_epoch_plan(samples, view)
    return RankPlan(
        rank_slice=rank_slice,
        epoch_plan=lambda _epoch: plan,
        order="stored",
        read_across_epochs=False,
        graph=EvalGraph(view, view.eval_window),
        pixel_format=Rgb888(view.eval_window),
        cached_samples=np.arange(rank_slice.first, rank_slice.end) if cached else np.arange(0),
    )


def _choose_order(
    samples: int, seed: int, labels: np.ndarray | None, cached: bool, batch_size: int, world_size: int
) -> tuple[Order, Partition | BalancedPartition | None]:
    """Return the order of training, and the partition that gives it."""
    if labels is None:
        return ("permutation", Partition(samples, batch_size, world_size, seed)) if cached else ("shards", None)
    if cached:
        return "balanced-parts", BalancedPartition(labels, batch_size, world_size, seed)
    # One rank that takes all: the order is then the same for any number of them.
    return "balanced", BalancedPartition(labels, batch_size * world_size, 1, seed)
