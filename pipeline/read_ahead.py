"""Reads the files of the batches to come, in the order of the plan, before the decoder asks for them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from pipeline.epoch import Share
from pipeline.inputs import EpochInputs
from pipeline.samples import Files, SampleError, Samples

LOG = logging.getLogger(__name__)

BATCHES_AHEAD = 3
"""Batches whose files are being read before the decoder asks for them."""
READERS = 4
"""Threads that read: they wait for the disk, not for the processor."""
CHUNK = 64
"""Samples that one thread reads in one go."""

Wanted = Callable[[np.ndarray], np.ndarray]
"""Samples, int64 -> which of them to read, bool."""


@dataclass
class Batch:
    """One rank's batch on its way through the loader."""

    epoch: int
    number: int
    inputs: EpochInputs
    positions: slice
    kept: np.ndarray
    """bool: which of its positions are given out; the others hold samples that are left out."""
    reads: list[Future[Files]]
    files: Files | None = None

    @property
    def indices(self) -> np.ndarray:
        """The samples of the batch, int64."""
        return self.inputs.order[self.positions][self.kept]

    @property
    def labels(self) -> np.ndarray:
        """Their labels, int64, once they are read."""
        assert self.files is not None
        return self.files.labels

    def wait(self) -> None:
        """Gather what the threads have read; raise what stopped them."""
        parts = [read.result() for read in self.reads]
        jpegs = [jpeg for part in parts for jpeg in part.jpegs]
        self.files = Files(
            jpegs, *(np.concatenate(arrays) for arrays in zip(*(part[1:] for part in parts), strict=True))
        )

    def graph_inputs(self, part: slice = slice(None)) -> Any:
        """Return what the graph's external source takes, for the whole batch or a part of it."""
        assert self.files is not None
        sizes = np.full((len(self.kept), 2), self.files.sizes[0])
        sizes[self.kept] = self.files.sizes
        arguments = self.inputs.arguments(self.positions, sizes)
        if not self.kept.all():
            arguments = tuple(values[self.kept] for values in arguments)
        return self.files.jpegs[part], *(values[part] for values in arguments)


class ReadAhead:
    """The source of a graph: an endless row of batches, or one that stops at the end of its epoch.

    Args:
        samples: where the files come from.
        share: which positions of an epoch are this rank's.
        epoch_inputs: the plan of an epoch by its number.
        endless: whether to go on with the next epoch, so that nothing waits at the boundary.
        wanted: called at each `seek`: returns what says which samples of one batch after another to read; a batch
            with none is passed over. Default: all.
        skip: leave out a sample that cannot be read, and make its batch smaller.
    """

    def __init__(
        self,
        samples: Samples,
        share: Share,
        epoch_inputs: Callable[[int], EpochInputs],
        *,
        endless: Callable[[], bool],
        wanted: Callable[[], Wanted] = lambda: lambda indices: np.ones(len(indices), bool),
        skip: bool = False,
    ) -> None:
        self._samples = samples
        self._share = share
        self._epoch_inputs = epoch_inputs
        self._endless = endless
        self._wanted = wanted
        self._skip = skip
        self.left_out: dict[int, SampleError] = {}
        """Samples that are given out no more, with what is wrong with them."""
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead")
        self._coming: Iterator[Batch] = iter(())
        self._reading: deque[Batch] = deque()
        self.taken: deque[Batch] = deque()
        """Batches that the graph has taken and not given out yet."""
        self.error: Exception | None = None
        """What ended the row early; it is raised when the batches before it are out."""

    def seek(self, epoch: int, number: int) -> None:
        """Begin to read from one batch of one epoch."""
        self.stop()
        self._coming = self._batches(epoch, number, self._wanted())
        self._reading = deque(islice(self._coming, BATCHES_AHEAD))

    def stop(self) -> None:
        """Forget the batches to come; those that the graph has taken stay in `taken`."""
        for batch in self._reading:
            for read in batch.reads:
                read.cancel()
        self._coming, self._reading, self.error = iter(()), deque(), None

    def take(self) -> Any:
        """Return the next batch's inputs; raise `StopIteration` at the end of the row or at what stopped it."""
        if not self._reading:
            raise StopIteration
        batch = self._reading.popleft()
        try:
            batch = self._read(batch)
        except Exception as error:
            self.stop()
            self.error = error
            raise StopIteration from error
        self._reading.extend(islice(self._coming, 1))
        self.taken.append(batch)
        return batch.graph_inputs()

    def leave_out(self, error: SampleError) -> None:
        """Give this sample out no more, from the next `seek` on."""
        if error.index not in self.left_out:
            self.left_out[error.index] = error
            LOG.warning("left out: %s", error)

    def close(self) -> None:
        """End the threads."""
        self.stop()
        self.taken.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _batches(self, epoch: int, number: int, wanted: Wanted) -> Iterator[Batch]:
        while True:
            inputs = self._epoch_inputs(epoch)
            for number_in_epoch in range(number, len(self._share)):
                kept = wanted(inputs.order[self._share.positions(number_in_epoch)])
                if kept.any():
                    yield self._begin(inputs, epoch, number_in_epoch, kept)
            if not self._endless():
                return
            epoch, number = epoch + 1, 0

    def _begin(self, inputs: EpochInputs, epoch: int, number: int, kept: np.ndarray) -> Batch:
        positions = self._share.positions(number)
        indices = inputs.order[positions]
        if self.left_out:
            kept = kept & ~np.isin(indices, list(self.left_out))
        indices = indices[kept]
        reads = [
            self._threads.submit(self._samples.read, indices[first : first + CHUNK])
            for first in range(0, len(indices), CHUNK)
        ]
        return Batch(epoch, number, inputs, positions, kept, reads)

    def _read(self, batch: Batch) -> Batch:
        """Wait for a batch; where a sample is to be left out, read the others."""
        while True:
            try:
                batch.wait()
            except SampleError as error:
                if not self._skip or batch.kept.sum() <= 1:
                    raise
                self.leave_out(error)
                batch = self._begin(batch.inputs, batch.epoch, batch.number, batch.kept)
            else:
                return batch
