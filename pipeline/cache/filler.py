"""Decodes what a cache lacks, in the order in which it is first needed."""

from __future__ import annotations

import numpy as np

from pipeline.cache.store import Cache
from pipeline.graphs import SquareGraph
from pipeline.rank_plan import RankPlan
from pipeline.reading.dali_stream import DaliStream, Decoder
from pipeline.reading.read_ahead import ReadAhead, Wanted
from pipeline.reading.samples import SampleError, Samples


class CacheFiller:
    """Fills a cache ahead of need, until all of its samples are there.

    Args:
        cache: what it holds is never decoded again.
        samples: where the files come from.
        plan: of the rank; its order counts.
        short_side: of the images, in pixels.
        decoder: decodes the images.
        skip: leave out a sample that cannot be read or decoded.
    """

    def __init__(
        self, cache: Cache, samples: Samples, plan: RankPlan, short_side: int, decoder: Decoder, *, skip: bool
    ) -> None:
        self._cache = cache
        self._skip = skip
        self._asked = cache.held.copy()
        self._source = ReadAhead(samples, plan, endless=lambda: not self._asked.all(), wanted=self._missing, skip=skip)
        graph = SquareGraph(short_side, cache.pixel_format.side)
        self._stream: DaliStream | None = DaliStream(
            self._source, samples, graph, plan.rank_slice.batch_size, decoder, skip=skip
        )

    def seek(self, epoch: int, number: int) -> None:
        """Decode from this batch on; what was under way is thrown away."""
        if self._stream is not None:
            self._stream.seek_anew(epoch, number)

    def fill(self, indices: np.ndarray, epoch: int, number: int) -> np.ndarray:
        """Wait until the cache holds a batch; return which of its samples it has: with `skip`, some may be left out.

        Args:
            indices: the samples, int64.
            epoch, number: the batch, the next one after those before.

        Raises:
            SampleError: a sample cannot be read or decoded; with `skip`, only if its batch has no other one.
        """
        left_out = self._source.left_out
        while not all(index in left_out for index in indices[~self._cache.held[indices]].tolist()):
            assert self._stream is not None
            try:
                images, batch = self._stream.decoded()
            except SampleError as error:
                if not self._skip:
                    raise
                # It was the last one to decode of its batch, of which the cache may hold others.
                self._source.leave_out(error)
                self.seek(epoch, number)
            else:
                self._cache.put(batch.indices, images, batch.files.labels)
        there = self._cache.held[indices]
        if not there.any():
            raise left_out[indices[-1]]
        if self._stream is not None and (~self._cache.held).sum() == len(left_out):
            self.close()
        return there

    def close(self) -> None:
        """Let go of the threads and of what is decoded."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _missing(self) -> Wanted:
        """Return what asks for each sample once that is neither there nor left out."""
        self._asked = asked = self._cache.held.copy()
        asked[list(self._source.left_out)] = True

        def ask(indices: np.ndarray) -> np.ndarray:
            first: np.ndarray = ~asked[indices]
            asked[indices] = True
            return first

        return ask
