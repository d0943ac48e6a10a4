"""Batches from a cache."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.augment import AugmentParams
from pipeline.cache.batch_kernel import CropFlipNormalize
from pipeline.cache.filler import CacheFiller
from pipeline.cache.store import Cache
from pipeline.rank_plan import RankPlan
from pipeline.reading.dali_stream import to_device
from pipeline.views import ViewSpec


class CachedBatchStream:
    """Batches from a cache in the order of a plan, from any position; the counterpart of `DaliStream`.

    Args:
        cache: decoded squares.
        filler: decodes what is not there yet.
        plan: of the rank.
        view: the views of each square.
        device: where batches are handed out.
    """

    def __init__(self, cache: Cache, filler: CacheFiller, plan: RankPlan, view: ViewSpec, device: torch.device) -> None:
        self._cache = cache
        self._filler = filler
        self._plan = plan
        self._batch_size = plan.rank_slice.batch_size
        self._crops = view.crops
        self._kernel = CropFlipNormalize(
            cache.pixel_format, self._batch_size * view.crops, view.crop, view.mean_crop, device
        )
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
        epoch_plan, positions = self._plan.epoch_plan(epoch), self._plan.rank_slice.positions(number)
        indices = epoch_plan.order[positions]
        kept = self._filler.fill(indices, epoch, number)
        sizes = np.full((len(indices), 2), self._cache.pixel_format.side, np.int32)
        params = epoch_plan.params(positions, sizes)
        params = AugmentParams(*(values[np.repeat(kept, self._crops)] for values in params))
        indices = indices[kept]
        rows, numbers = self._cache.rows(indices, self._batch_size, self._device)
        images = self._kernel(rows, np.repeat(numbers, self._crops), params)
        if self._crops > 1:
            images = images.unflatten(0, (-1, self._crops))
        self.skipped += int((~kept).sum())
        self._coming = (epoch, number + 1) if number + 1 < len(self._plan.rank_slice) else (epoch + 1, 0)
        return images, to_device(self._cache.labels(indices), self._device)

    def close(self) -> None:
        """Let go of the threads and of the cache."""
        self._filler.close()
        self._cache.close()
