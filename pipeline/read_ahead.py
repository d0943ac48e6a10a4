"""Reads the files of the batches to come, in the order of the plan, before the decoder asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from pipeline.epoch import Share
from pipeline.samples import Samples

BATCHES_AHEAD = 3
"""Batches whose files are being read before the decoder asks for them."""
READERS = 4
"""Threads that read: they wait for the disk, not for the processor."""
CHUNK = 32
"""Samples that one thread reads in one go."""


@dataclass(frozen=True)
class EpochInputs:
    """What an epoch feeds to the graph, by global position."""

    order: np.ndarray
    """int64 n: which sample."""
    arguments: tuple[np.ndarray, ...]
    """n,... each: what the graph is given beside the JPEG files."""


@dataclass
class Batch:
    """One rank's batch on its way through the loader."""

    epoch: int
    number: int
    indices: np.ndarray
    arguments: tuple[np.ndarray, ...]
    reads: list[Future[tuple[list[np.ndarray], np.ndarray]]]
    jpegs: list[np.ndarray] = field(default_factory=list)
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def wait(self) -> None:
        """Gather what the threads have read; raise what stopped them."""
        parts = [read.result() for read in self.reads]
        self.jpegs = [jpeg for jpegs, _ in parts for jpeg in jpegs]
        self.labels = np.concatenate([labels for _, labels in parts])

    def inputs(self, part: slice = slice(None)) -> Any:
        """Return what the graph's external source takes, for the whole batch or a part of it."""
        jpegs = self.jpegs[part]
        return (jpegs, *(values[part] for values in self.arguments)) if self.arguments else jpegs


class ReadAhead:
    """The source of a graph: an endless row of batches, or one that stops at the end of its epoch.

    Args:
        samples: where the files come from.
        share: which positions of an epoch are this rank's.
        epoch_inputs: the plan of an epoch by its number.
        endless: go on with the next epoch, so that nothing waits at the boundary.
    """

    def __init__(
        self, samples: Samples, share: Share, epoch_inputs: Callable[[int], EpochInputs], *, endless: bool
    ) -> None:
        self._samples = samples
        self._share = share
        self._epoch_inputs = epoch_inputs
        self._endless = endless
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
        self._coming = self._batches(epoch, number)
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
            batch.wait()
        except Exception as error:
            self.stop()
            self.error = error
            raise StopIteration from error
        self._reading.extend(islice(self._coming, 1))
        self.taken.append(batch)
        return batch.inputs()

    def close(self) -> None:
        """End the threads."""
        self.stop()
        self.taken.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _batches(self, epoch: int, number: int) -> Iterator[Batch]:
        while True:
            inputs = self._epoch_inputs(epoch)
            for number_in_epoch in range(number, len(self._share)):
                yield self._begin(inputs, epoch, number_in_epoch)
            if not self._endless:
                return
            epoch, number = epoch + 1, 0

    def _begin(self, inputs: EpochInputs, epoch: int, number: int) -> Batch:
        positions = self._share.positions(number)
        indices = inputs.order[positions]
        reads = [
            self._threads.submit(self._samples.read, indices[first : first + CHUNK])
            for first in range(0, len(indices), CHUNK)
        ]
        return Batch(epoch, number, indices, tuple(values[positions] for values in inputs.arguments), reads)
