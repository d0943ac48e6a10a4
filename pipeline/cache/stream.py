"""Batches from a cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pipeline.cache.batch_kernel import CropFlipNormalize
from pipeline.cache.filler import CacheFiller
from pipeline.cache.store import Cache
from pipeline.inputs import EpochPlan
from pipeline.rank_plan import ViewSpec
from pipeline.reading.dali_stream import to_device
from pipeline.sampler import RankSlice


class CachedBatchStream:
    """Batches from a cache in the order of `epoch_plan`, from any position; the counterpart of `DaliStream`.

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
        filler: CacheFiller,
        rank_slice: RankSlice,
        epoch_plan: Callable[[int], EpochPlan],
        view: ViewSpec,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._cache = cache
        self._filler = filler
        self._kernel = CropFlipNormalize(cache.pixel_format, batch_size * view.crops, view.crop, view.mean_crop, device)
        self._rank_slice = rank_slice
        self._epoch_plan = epoch_plan
        self._batch_size = batch_size
        self._crops = view.crops
        self._device = device
        self._coming: tuple[int, int] | None = None
        self.skipped = 0
        """Samples left out of the batches that were given out."""

    def seek(self, epoch: int, number: int) -> None:
        """Go on with this batch; costs nothing where it comes next anyway."""
        if (epoch, number) != self._coming:
            self._filler.seek(epoch, number)
            self._coming = epoch, number

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images and labels.

        Raises:
            SampleError: a sample cannot be read or decoded; where they are left out, only if its batch has no other.
        """
        assert self._coming is not None
        (epoch, number), self._coming = self._coming, None
        inputs, positions = self._epoch_plan(epoch), self._rank_slice.positions(number)
        indices = inputs.order[positions]
        kept = self._filler.fill(indices, epoch, number)
        arguments = inputs.arguments(positions, np.full((len(indices), 2), self._cache.pixel_format.side))
        arguments = tuple(values[np.repeat(kept, self._crops)] for values in arguments)
        indices = indices[kept]
        rows, numbers = self._cache.rows(indices, self._batch_size, self._device)
        images = self._kernel(rows, np.repeat(numbers, self._crops), arguments)
        if self._crops > 1:
            images = images.unflatten(0, (-1, self._crops))
        self.skipped += int((~kept).sum())
        self._coming = (epoch, number + 1) if number + 1 < len(self._rank_slice) else (epoch + 1, 0)
        return images, to_device(self._cache.labels(indices), self._device)

    def close(self) -> None:
        """Let go of the threads and of the cache."""
        self._filler.close()
        self._cache.close()
