"""Batches from a cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pipeline.cache.batch_kernel import FusedPass
from pipeline.cache.filler import Filling
from pipeline.cache.store import Cache
from pipeline.inputs import EpochInputs
from pipeline.rank_plan import Shown
from pipeline.reading.dali_stream import to_device
from pipeline.sampler import Share


class CachedStream:
    """What `Stream` is, from a cache: batches in the order of `epoch_inputs`, from any position.

    Args:
        cache: decoded squares.
        filling: decodes what is not there yet.
        share: which positions of an epoch are this rank's.
        epoch_inputs: the plan of an epoch by its number, windows within a square.
        shown: what of an image is handed out.
        batch_size: the largest batch.
        device: where batches are handed out.
    """

    def __init__(
        self,
        cache: Cache,
        filling: Filling,
        share: Share,
        epoch_inputs: Callable[[int], EpochInputs],
        shown: Shown,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._cache = cache
        self._filling = filling
        self._fused = FusedPass(cache.squares, batch_size * shown.crops, shown.crop, shown.mean_crop, device)
        self._share = share
        self._epoch_inputs = epoch_inputs
        self._batch_size = batch_size
        self._crops = shown.crops
        self._device = device
        self._coming: tuple[int, int] | None = None
        self.skipped = 0
        """Samples left out of the batches that were given out."""

    def seek(self, epoch: int, number: int) -> None:
        """Go on with this batch; costs nothing where it comes next anyway."""
        if (epoch, number) != self._coming:
            self._filling.seek(epoch, number)
            self._coming = epoch, number

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images and labels.

        Raises:
            SampleError: a sample cannot be read or decoded; where they are left out, only if its batch has no other.
        """
        assert self._coming is not None
        (epoch, number), self._coming = self._coming, None
        inputs, positions = self._epoch_inputs(epoch), self._share.positions(number)
        indices = inputs.order[positions]
        kept = self._filling.fill(indices, epoch, number)
        arguments = inputs.arguments(positions, np.full((len(indices), 2), self._cache.squares.side))
        arguments = tuple(values[np.repeat(kept, self._crops)] for values in arguments)
        indices = indices[kept]
        rows, numbers = self._cache.rows(indices, self._batch_size, self._device)
        images = self._fused(rows, np.repeat(numbers, self._crops), arguments)
        if self._crops > 1:
            images = images.unflatten(0, (-1, self._crops))
        self.skipped += int((~kept).sum())
        self._coming = (epoch, number + 1) if number + 1 < len(self._share) else (epoch + 1, 0)
        return images, to_device(self._cache.labels(indices), self._device)

    def close(self) -> None:
        """Let go of the threads and of the cache."""
        self._filling.close()
        self._cache.close()
