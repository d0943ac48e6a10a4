"""The order of an epoch and all of its random numbers, as a function of (seed, epoch).

All of it is indexed by global position: position p of an epoch holds sample `order[p]`, cut at `offsets[p]`, whatever
the number of ranks. Ranks only divide positions among themselves, so the same global batch comes out of any number
of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from errors import InputError, check_count
from pipeline.balanced import BalancedPartition

Sampling = Literal["uniform", "balanced"]
"""Which samples an epoch of training has: each once, or as many of each class."""

SHUFFLE_GROUP_SHARDS = 16
"""Shards are permuted each epoch, then samples inside groups of this many: a full permutation for data sets up to
this size, and beyond it reads stay within few files at a time.

How well that shuffles, at 1,281 shards of 1,000 samples and batches of 128, against a full permutation: a sample
moves by a third of the data set between two epochs, as there; two samples of one batch meet again in a batch of the
next epoch with a probability of 5.8e-4 (there 1.0e-4); a batch holds samples of all 16 shards of its group (there of
122 shards). Each shard is a random sample of all classes already, by the global shuffle of the build."""

ATTEMPTS = 10
"""Windows of random size that are tried until one fits, as torchvision does."""

_ORDER, _OFFSETS, _FLIPS, _NORMALS, _FRACTIONS, _ATTEMPTS, _OWNERS = range(7)


@dataclass(frozen=True)
class EpochDraws:
    """One epoch by global position."""

    order: np.ndarray
    """int64, n or fewer: which sample."""
    offsets: np.ndarray
    """int32 n,2: the crop's top left corner (y, x) within the central square, in pixels."""
    flips: np.ndarray
    """int32 n: 1 for a mirrored image, else 0."""
    normals: np.ndarray
    """float32 n,3: standard normal numbers for the lighting noise."""
    crop_fractions: np.ndarray
    """float64 n,2: uniform in [0, 1), relative position (y, x) of a window in an image of any size."""

    def shared_by_chunks(self, global_batch: int, chunk: int) -> EpochDraws:
        """Give each `chunk` consecutive positions of a global batch the window and the flip of its first one."""
        positions = np.arange(len(self.order))
        first = positions - positions % global_batch % chunk
        return replace(
            self, offsets=self.offsets[first], flips=self.flips[first], crop_fractions=self.crop_fractions[first]
        )


@dataclass(frozen=True)
class Partition:
    """A fixed division of the samples among ranks, each of which keeps its own: their numbers differ by one at most.

    It depends only on (seed, samples, world_size). In every epoch each rank goes through its part in the order of a
    permutation of (seed, epoch): with one rank that is a true permutation of all samples.
    """

    samples: int
    batch_size: int
    """Of each rank."""
    world_size: int
    seed: int

    def members(self, rank: int) -> np.ndarray:
        """Return the samples that a rank keeps, int64, ascending."""
        return np.flatnonzero(self._owners() == rank)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch by global position, int64 n, as `RankSlice.of_training` divides it among ranks.

        Samples beyond the last global batch come at its end: each epoch leaves out different ones.
        """
        drawn = _rng(self.seed, epoch, _ORDER).permutation(self.samples)
        owners = self._owners()[drawn]
        parts = [drawn[owners == rank] for rank in range(self.world_size)]
        used = self.samples // (self.batch_size * self.world_size) * self.batch_size
        batches = np.stack([part[:used].reshape(-1, self.batch_size) for part in parts], axis=1)
        return np.concatenate([batches.reshape(-1), *(part[used:] for part in parts)])

    def _owners(self) -> np.ndarray:
        shuffled = _rng(self.seed, 0, _OWNERS).permutation(self.samples)
        return shuffled * self.world_size // max(self.samples, 1)


def draw_epoch(
    shard_samples: Sequence[int],
    seed: int,
    epoch: int,
    slack: int,
    partition: Partition | BalancedPartition | None = None,
) -> EpochDraws:
    """Draw a training epoch.

    Each kind of number has a counter-based stream of its own: what is switched off changes nothing else.

    Args:
        shard_samples: the number of samples in each shard.
        seed: not negative.
        epoch: from 0.
        slack: the largest crop offset, inclusive.
        partition: gives the order where classes are balanced or each rank keeps a part of the samples; None shuffles
            shards.
    """
    samples = sum(shard_samples)
    return EpochDraws(
        order=partition.order(epoch) if partition else _shuffled(shard_samples, _rng(seed, epoch, _ORDER)),
        offsets=_rng(seed, epoch, _OFFSETS).integers(0, slack, size=(samples, 2), dtype=np.int32, endpoint=True),
        flips=_rng(seed, epoch, _FLIPS).integers(0, 2, size=samples, dtype=np.int32),
        normals=_rng(seed, epoch, _NORMALS).standard_normal((samples, 3), dtype=np.float32),
        crop_fractions=_rng(seed, epoch, _FRACTIONS).random((samples, 2)),
    )


def draw_attempts(seed: int, epoch: int, positions: slice) -> np.ndarray:
    """Draw area and ratio of windows of random size, uniform in [0, 1), n,ATTEMPTS,2 for the positions asked for.

    They are many: only those of a batch are drawn, the generator's counter is set to its first position.
    """
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch, _ATTEMPTS)))
    numbers_per_count = 4
    bits.advance(positions.start * ATTEMPTS * 2 // numbers_per_count)
    return np.random.Generator(bits).random((positions.stop - positions.start, ATTEMPTS, 2))


@dataclass(frozen=True)
class RankSlice:
    """The positions of an epoch that one rank takes: batch b is [first + b * stride, + batch_size), cut at `end`."""

    first: int
    stride: int
    end: int
    batch_size: int

    @classmethod
    def of_training(cls, samples: int, batch_size: int, rank: int, world_size: int) -> RankSlice:
        """Divide each global batch of batch_size * world_size positions; a last, smaller one is left out.

        Raises:
            InputError: rank and world_size are not ones, or there is not even one global batch.
        """
        _check(batch_size, rank, world_size)
        if samples < batch_size * world_size:
            raise InputError(
                f"{samples} training samples are too few for one batch of {batch_size} on each of {world_size} ranks "
                f"({batch_size * world_size}): choose a smaller batch size"
            )
        global_batch = batch_size * world_size
        return cls(rank * batch_size, global_batch, samples // global_batch * global_batch, batch_size)

    @classmethod
    def of_evaluation(cls, samples: int, batch_size: int, rank: int, world_size: int) -> RankSlice:
        """Give rank r the samples [floor(r n / w), floor((r + 1) n / w)), whose last batch may be smaller.

        Raises:
            InputError: rank and world_size are not ones.
        """
        _check(batch_size, rank, world_size)
        first, end = (samples * r // world_size for r in (rank, rank + 1))
        return cls(first, batch_size, end, batch_size)

    def __len__(self) -> int:
        """Count the batches."""
        return max(0, -(-(self.end - self.first) // self.stride))

    def positions(self, batch: int) -> slice:
        """Return the positions of one batch."""
        start = self.first + batch * self.stride
        return slice(start, min(start + self.batch_size, self.end))


def _check(batch_size: int, rank: int, world_size: int) -> None:
    check_count("batch_size", batch_size, 1)
    check_count("world_size", world_size, 1)
    if not 0 <= rank < world_size:
        raise InputError(f"rank is {rank!r}; use 0 to {world_size - 1}, below world_size")


def _rng(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, purpose))))


def _shuffled(shard_samples: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    shards = np.split(np.arange(sum(shard_samples)), np.cumsum(shard_samples)[:-1])
    order = rng.permutation(len(shards))
    groups = []
    for first in range(0, len(order), SHUFFLE_GROUP_SHARDS):
        group = np.concatenate([shards[shard] for shard in order[first : first + SHUFFLE_GROUP_SHARDS]])
        rng.shuffle(group)
        groups.append(group)
    return np.concatenate(groups)
