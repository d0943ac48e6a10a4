"""What decides the content of one rank's batches: which samples, drawn how, shown how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np

from errors import InputError
from pipeline.augment import Augmentation, Units, channel_mean, divisor
from pipeline.cache.formats import RgbSquares, Squares, YccSquares
from pipeline.graphs import eval_graph, train_graph
from pipeline.inputs import EpochInputs, TrainingInputs, evaluation_inputs, kept_evaluation_inputs
from pipeline.reading.dali_stream import Graph
from pipeline.reading.samples import Samples
from pipeline.sampler import Partition, Share
from preprocess.manifest import ColorStats


@dataclass(frozen=True)
class Shown:
    """What of an image is handed out, and in which units."""

    short_side: int
    """Of the images, in pixels."""
    crop: int
    """Side of what is handed out, in pixels."""
    crops: int
    """Views of each image: 1 or 10."""
    color_stats: ColorStats
    units: Units
    mean_crop: np.ndarray | None
    """What is subtracted pixel by pixel, float32 3,crop,crop, or None where it is the channel mean."""

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
class Work:
    """One rank's work."""

    share: Share
    inputs: Callable[[int], EpochInputs]
    """The plan of an epoch by its number: for `graph`, or for the pass over a cache."""
    order: Literal["shards", "permutation", "stored"]
    """Shuffled within groups of shards, permuted as a whole, or as stored: part of what a loader's state must match."""
    endless: bool
    """Whether the next epoch's first samples are read while the last batches of one are decoded."""
    graph: Graph
    """Makes batches without a cache."""
    squares: Squares
    """What a cache keeps of an image: its central window."""
    members: np.ndarray
    """The samples that a cache keeps, int64, ascending; none without a cache."""


def training_work(
    samples: Samples,
    shown: Shown,
    augmentation: Augmentation,
    seed: int,
    *,
    cached: bool,
    batch_size: int,
    rank: int,
    world_size: int,
) -> Work:
    """Return what a rank does in training.

    Raises:
        InputError: ranks or batch size are not valid, or what a cache keeps is not enough for the augmentation.
    """
    share = Share.of_training(len(samples), batch_size, rank, world_size)
    partition = Partition(len(samples), batch_size, world_size, seed) if cached else None
    if cached:
        _check_fits_cache(augmentation)
    inputs = TrainingInputs(
        shard_samples=samples.shard_samples,
        seed=seed,
        global_batch=batch_size * world_size,
        short_side=shown.short_side,
        crop=shown.crop,
        augmentation=augmentation,
        color_stats=shown.color_stats,
        units=shown.units,
        mean="channel" if shown.mean_crop is None else "image",
        partition=partition,
    )
    resized = augmentation.crop_size == "random"
    return Work(
        share=share,
        inputs=lru_cache(maxsize=2)(inputs),  # the decoding and the pass of a cache ask for the same epoch
        order="shards" if partition is None else "permutation",
        endless=True,
        graph=partial(train_graph, crop=shown.crop, resized=resized, mean_crop=shown.mean_crop),
        squares=YccSquares(shown.short_side),
        members=np.arange(0) if partition is None else partition.members(rank),
    )


def evaluation_work(
    samples: Samples, shown: Shown, *, cached: bool, batch_size: int, rank: int, world_size: int
) -> Work:
    """Return what a rank does in evaluation: with a cache, on the very pixels that it would decode.

    Raises:
        InputError: ranks or batch size are not valid.
    """
    share = Share.of_evaluation(len(samples), batch_size, rank, world_size)
    mean = np.asarray(
        channel_mean(shown.color_stats, shown.units) if shown.mean_crop is None else (0, 0, 0), np.float32
    )
    divisors = np.asarray(divisor(shown.color_stats, shown.units), np.float32)
    window = shown.eval_window
    kept = kept_evaluation_inputs(len(samples), window - shown.crop, shown.crops, mean, divisors)
    decoded = evaluation_inputs(len(samples), shown.short_side, window)
    return Work(
        share=share,
        inputs=lambda _epoch: kept if cached else decoded,
        order="stored",
        endless=False,
        graph=shown.eval_graph(),
        squares=RgbSquares(window),
        members=np.arange(share.first, share.end) if cached else np.arange(0),
    )


def _check_fits_cache(augmentation: Augmentation) -> None:
    for name, valid, reason in (
        ("crop_region", "central-square", "of the images it keeps the central squares alone"),
        ("crop_size", "fixed", "its pass does not resize"),
    ):
        if (value := getattr(augmentation, name)) != valid:
            raise InputError(f"{name} is {value!r}; valid with a cache: {valid}, since {reason}")
