"""Class-balanced training epochs: their order, as a function of (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_SHARES, _CLASSES, _CYCLES, _ORDER = range(16, 20)
"""Purposes of the random numbers; `pipeline.sampler` has those below."""
_NUMBERS_PER_COUNT = 4
"""Random numbers that Philox makes at each count."""


@dataclass(frozen=True)
class _ClassShare:
    """The part of a class that one rank draws from, as a cycle of as many draws as the class has samples."""

    samples: np.ndarray
    """int64 n: each sample of the rank's own `world_size` times, each that all ranks share once."""
    first: np.ndarray
    """float64 n: earliest moment of each draw within a cycle, 0 up to `world_size`."""
    room: np.ndarray
    """float64 n: how much later it may be."""


@dataclass(frozen=True)
class BalancedPartition:
    """Class-balanced sampling: every class is drawn equally often, and within a class every sample.

    This is the class-balanced sampling of Kang et al. 2020 (Decoupling Representation and Classifier for Long-Tailed
    Recognition, section 3), p_j = 1 / C for each of C classes, without the luck of the draw: the draws of a rank go
    through the classes in turn, and through the samples of a class by one permutation after another. So in every epoch
    the classes differ by one draw at most on a rank. Over epochs, the samples of a class differ by one draw at most,
    with several ranks by `world_size`. The draws of an epoch are shuffled. An epoch has as many batches as without
    balance: samples of rare classes come several times in it, those of frequent classes in some epochs only. Classes
    without samples do not count.

    Each rank keeps an equal number of the samples of a class, which do not change; those that cannot be divided
    equally, fewer than `world_size`, are kept by all ranks and drawn the less often by each.
    """

    labels: np.ndarray
    """Of the samples, int64."""
    batch_size: int
    """Of each rank."""
    world_size: int
    """Ranks that keep samples of their own; 1 where the order is to be the same for any number of ranks."""
    seed: int

    def members(self, rank: int) -> np.ndarray:
        """Return the samples that a rank keeps, int64, ascending."""
        return np.unique(np.concatenate([share.samples for share in self._shares[rank]]))

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch by global position, int64, as `RankSlice.of_training` divides it among ranks."""
        parts = [self._draw(rank, epoch).reshape(-1, self.batch_size) for rank in range(self.world_size)]
        return np.stack(parts, axis=1).reshape(-1)

    def _draw(self, rank: int, epoch: int) -> np.ndarray:
        """Return the draws of one rank in one epoch, shuffled, int64."""
        count = len(self.labels) // (self.batch_size * self.world_size) * self.batch_size
        turns = _rng(self.seed, _CLASSES, rank).permutation(len(self._shares[rank]))
        begin, end = epoch * count, (epoch + 1) * count
        drawn = [
            # Draw t of all epochs is of class turns[t % C]: these are the draws of that class before both ends.
            self._of_class(rank, number, *(-(-(bound - turn) // len(turns)) for bound in (begin, end)))
            for turn, number in enumerate(turns.tolist())
        ]
        return _rng(self.seed, _ORDER, rank, epoch).permutation(np.concatenate(drawn))

    def _of_class(self, rank: int, number: int, begin: int, end: int) -> np.ndarray:
        """Return draws `begin` to `end`, counted over all epochs, of one class."""
        share = self._shares[rank][number]
        length = len(share.samples)
        first_cycle, last_cycle = begin // length, -(-end // length)
        # A number for each draw of these cycles, of a stream that is entered at the first of them.
        skipped, start = divmod(first_cycle * length, _NUMBERS_PER_COUNT)
        bits = _philox(self.seed, _CYCLES, rank, number)
        bits.advance(skipped)
        numbers = np.random.Generator(bits).random(start + (last_cycle - first_cycle) * length)[start:]
        moments = share.first + share.room * numbers.reshape(-1, length)
        cycles = share.samples[np.argsort(moments, axis=1)].reshape(-1)
        return cycles[begin - first_cycle * length : end - first_cycle * length]

    @cached_property
    def _shares(self) -> list[list[_ClassShare]]:
        """The share of each class by rank; classes without samples are left out."""
        counts = np.bincount(self.labels)
        by_class = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(counts)[:-1])
        shuffled = [
            _rng(self.seed, _SHARES, label).permutation(samples)
            for label, samples in enumerate(by_class)
            if len(samples)
        ]
        return [[self._share(samples, rank) for samples in shuffled] for rank in range(self.world_size)]

    def _share(self, samples: np.ndarray, rank: int) -> _ClassShare:
        each = len(samples) // self.world_size
        own, shared = samples[rank * each : (rank + 1) * each], samples[self.world_size * each :]
        rounds = np.repeat(np.arange(self.world_size, dtype=np.float64), each)
        return _ClassShare(
            samples=np.concatenate([np.tile(own, self.world_size), shared]),
            first=np.concatenate([rounds, np.zeros(len(shared))]),
            room=np.concatenate([np.ones(len(rounds)), np.full(len(shared), float(self.world_size))]),
        )


def _philox(seed: int, purpose: int, *numbers: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence((seed, *numbers, purpose)))


def _rng(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.Generator(_philox(seed, purpose, *numbers))
