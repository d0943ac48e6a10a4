"""Reads the files of the batches to come, in the order of the plan, before the decoder asks for them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from pipeline.augment import EpochPlan
from pipeline.graphs import Graph
from pipeline.rank_plan import RankPlan
from pipeline.reading.samples import EncodedSamples, SampleError, Samples

LOG = logging.getLogger(__name__)

BATCHES_AHEAD = 4
"""Batches whose files are being read before the decoder asks for them, each in a thread of its own."""

Read = tuple[EncodedSamples, TensorListCPU]
"""A batch's files, and their JPEGs as DALI takes them all at once."""
Wanted = Callable[[np.ndarray], np.ndarray]
"""Samples, int64 -> which of them to read, bool."""


@dataclass
class PendingBatch:
    """One rank's batch on its way through the loader."""

    epoch: int
    number: int
    plan: EpochPlan
    positions: slice
    kept: np.ndarray
    """bool: which of its positions are given out; the others hold samples that are left out."""
    reading: Future[Read]

    @property
    def indices(self) -> np.ndarray:
        """The samples of the batch, int64."""
        return self.plan.order[self.positions][self.kept]

    @property
    def files(self) -> EncodedSamples:
        """Their files; waits until they are read, and raises what stopped that."""
        return self.reading.result()[0]

    @property
    def jpegs(self) -> TensorListCPU:
        """Their JPEG files as DALI takes them all at once."""
        return self.reading.result()[1]

    def parameters(self, graph: Graph) -> tuple[np.ndarray, ...]:
        """Return the graph's parameters of each sample."""
        sizes = np.full((len(self.kept), 2), self.files.sizes[0])
        sizes[self.kept] = self.files.sizes
        parameters = graph.parameters(self.plan, self.positions, sizes)
        return parameters if self.kept.all() else tuple(values[self.kept] for values in parameters)


class ReadAhead:
    """The source of a graph: batches without end, or up to the end of an epoch.

    Args:
        samples: their files are read.
        plan: the order of the samples.
        read_across_epochs: asked at the end of an epoch: go on with the next one, so that nothing waits there.
        wanted: called at each `seek`; the function that it returns is then called with the samples of one batch after
            another, and returns which of them to read. A batch with none is passed over. Default: all.
        skip: leave out a sample that cannot be read, and make its batch smaller.
    """

    def __init__(
        self,
        samples: Samples,
        plan: RankPlan,
        *,
        read_across_epochs: Callable[[], bool],
        wanted: Callable[[], Wanted] = lambda: lambda indices: np.ones(len(indices), bool),
        skip: bool,
    ) -> None:
        self.samples = samples
        self.plan = plan
        self._read_across_epochs = read_across_epochs
        self._wanted = wanted
        self.skip = skip
        self.left_out: dict[int, SampleError] = {}
        """Samples that are given out no more, with what is wrong with them."""
        self._threads = ThreadPoolExecutor(BATCHES_AHEAD, thread_name_prefix="read-ahead")
        self._coming: Iterator[PendingBatch] = iter(())
        self._reading: deque[PendingBatch] = deque()
        self.taken: deque[PendingBatch] = deque()
        """Batches that the graph has taken and not given out yet."""
        self.error: Exception | None = None
        """The error that ended reading early; it is raised after the batches before it."""

    def seek(self, epoch: int, number: int) -> None:
        """Begin to read from one batch of one epoch."""
        self.stop()
        self._coming = self._batches(epoch, number, self._wanted())
        self._reading = deque(islice(self._coming, BATCHES_AHEAD))

    def stop(self) -> None:
        """Forget the batches to come; those that the graph has taken stay in `taken`."""
        for batch in self._reading:
            batch.reading.cancel()
        self._coming, self._reading, self.error = iter(()), deque(), None

    def take(self) -> PendingBatch:
        """Return the next batch once it is read; raise `StopIteration` at the end or at what stopped it."""
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
        return batch

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

    def _batches(self, epoch: int, number: int, wanted: Wanted) -> Iterator[PendingBatch]:
        while True:
            self.samples.prefetch(partial(self._needed, epoch, number), partial(self._needed_then, epoch + 1))
            plan = self.plan.epoch_plan(epoch)
            for number_in_epoch in range(number, len(self.plan.rank_slice)):
                kept = wanted(plan.order[self.plan.rank_slice.positions(number_in_epoch)])
                if kept.any():
                    yield self._begin(plan, epoch, number_in_epoch, kept)
            if not self._read_across_epochs():
                return
            epoch, number = epoch + 1, 0

    def _needed(self, epoch: int, number: int) -> np.ndarray:
        """Return the samples of an epoch from one batch on, in order, int64."""
        order, rank_slice = self.plan.epoch_plan(epoch).order, self.plan.rank_slice
        batches = [order[rank_slice.positions(batch)] for batch in range(number, len(rank_slice))]
        return np.concatenate([order[:0], *batches])

    def _needed_then(self, epoch: int) -> np.ndarray:
        return self._needed(epoch, 0) if self._read_across_epochs() else np.arange(0)

    def _begin(self, plan: EpochPlan, epoch: int, number: int, kept: np.ndarray) -> PendingBatch:
        positions = self.plan.rank_slice.positions(number)
        indices = plan.order[positions]
        if self.left_out:
            kept = kept & ~np.isin(indices, list(self.left_out))
        return PendingBatch(epoch, number, plan, positions, kept, self._threads.submit(self._files, indices[kept]))

    def _files(self, indices: np.ndarray) -> Read:
        # DALI would check and wrap each file of a list itself, slowly, in the thread that iterates: it gets one object.
        files = self.samples.read(indices)
        jpegs = TensorListCPU(list(map(TensorCPU, files.jpegs)), contiguous=False)  # type: ignore[call-overload]
        return files, jpegs

    def _read(self, batch: PendingBatch) -> PendingBatch:
        """Wait for a batch; where a sample is to be left out, read the others."""
        while True:
            if not batch.kept.any():
                indices = batch.plan.order[batch.positions].tolist()
                raise next(self.left_out[index] for index in indices if index in self.left_out)
            try:
                batch.reading.result()
            except SampleError as error:
                if not self.skip or batch.kept.sum() <= 1:
                    raise
                self.leave_out(error)
                batch = self._begin(batch.plan, batch.epoch, batch.number, batch.kept)
            else:
                return batch
