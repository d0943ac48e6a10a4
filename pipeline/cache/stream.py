"""Batches from a cache, which is filled as batches are requested."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.augment import AugmentParams
from pipeline.cache.batch_kernel import CropFlipNormalize
from pipeline.cache.store import Cache
from pipeline.graphs import SquareGraph
from pipeline.rank_plan import RankPlan
from pipeline.reading.dali_stream import DaliStream, Decoder, to_device
from pipeline.reading.read_ahead import ReadAhead, Wanted
from pipeline.reading.samples import SampleError, Samples
from pipeline.views import ViewSpec


class CachedBatchStream:
    """Batches from a cache in the order of a plan, from any position; the counterpart of `DaliStream`.

    Samples that the cache lacks are decoded ahead, in the order in which they are first needed; none is decoded again.
    With `skip` one that cannot be read or decoded is left out.
    """

    def __init__(
        self, cache: Cache, samples: Samples, plan: RankPlan, view: ViewSpec, decoder: Decoder, *, skip: bool
    ) -> None:
        self._cache = cache
        self._plan = plan
        self._device = decoder.device
        self._batch_size = plan.rank_slice.batch_size
        self._crops = view.crops
        self._kernel = CropFlipNormalize(
            cache.pixel_format, self._batch_size * view.crops, view.crop, view.mean_crop, self._device
        )
        self._requested = cache.held.copy()
        self._source = ReadAhead(
            samples,
            plan,
            read_across_epochs=lambda: not self._requested.all(),
            wanted=self._missing,
            skip=skip,
        )
        self._decoding: DaliStream | None = DaliStream(
            self._source, SquareGraph(view, cache.pixel_format.side), decoder
        )
        self._next_position: tuple[int, int] | None = None
        self.skipped = 0
        """Samples left out of the batches that were given out."""

    def seek(self, epoch: int, batch: int) -> None:
        """Move to this batch; does nothing if it is the next one."""
        if (epoch, batch) != self._next_position:
            if self._decoding is not None:
                self._decoding.restart(epoch, batch)
            self._next_position = epoch, batch

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images and labels.

        Raises:
            SampleError: a sample cannot be read or decoded; where they are left out, only if its batch has no other.
        """
        assert self._next_position is not None
        (epoch, batch), self._next_position = self._next_position, None
        epoch_plan, positions = self._plan.epoch_plan(epoch), self._plan.rank_slice.positions(batch)
        indices = epoch_plan.order[positions]
        available = self._fill(indices, epoch, batch)
        sizes = np.full((len(indices), 2), self._cache.pixel_format.side, np.int32)
        params = epoch_plan.params(positions, sizes)
        params = AugmentParams(*(values[np.repeat(available, self._crops)] for values in params))
        indices = indices[available]
        rows, row_numbers = self._cache.rows(indices, self._batch_size, self._device)
        images = self._kernel(rows, np.repeat(row_numbers, self._crops), params)
        if self._crops > 1:
            images = images.unflatten(0, (-1, self._crops))
        self.skipped += int((~available).sum())
        self._next_position = (epoch, batch + 1) if batch + 1 < len(self._plan.rank_slice) else (epoch + 1, 0)
        return images, to_device(self._cache.labels(indices), self._device)

    def close(self) -> None:
        """Release the threads and the cache."""
        self._stop_decoding()
        self._cache.close()

    def _fill(self, indices: np.ndarray, epoch: int, batch: int) -> np.ndarray:
        """Decode until the cache holds the samples of a batch, except those left out; return which of them it holds."""
        held, left_out = self._cache.held, self._source.left_out
        while not all(index in left_out for index in indices[~held[indices]].tolist()):
            assert self._decoding is not None
            try:
                images, decoded = self._decoding.decoded()
            except SampleError as error:
                if not self._source.skip:
                    raise
                # It was the last one to decode of its batch, of which the cache may hold others.
                self._source.leave_out(error)
                self._decoding.restart(epoch, batch)
            else:
                self._cache.put(decoded.indices, images, decoded.files.labels)
        available = held[indices]
        if not available.any():
            raise left_out[indices[-1]]
        if (~held).sum() == len(left_out):
            self._stop_decoding()
        return available

    def _stop_decoding(self) -> None:
        if self._decoding is not None:
            self._decoding.close()
            self._decoding = None

    def _missing(self) -> Wanted:
        """Return a function that wants each sample once that is neither in the cache nor left out."""
        self._requested = requested = self._cache.held.copy()
        requested[list(self._source.left_out)] = True

        def request(indices: np.ndarray) -> np.ndarray:
            first = np.zeros(len(indices), bool)
            first[np.unique(indices, return_index=True)[1]] = True  # balanced batches may hold a sample twice
            first &= ~requested[indices]
            requested[indices] = True
            return first

        return request
