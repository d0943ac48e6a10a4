"""Runs a DALI graph ahead of its consumer and hands its batches over as torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline

from pipeline.reading.read_ahead import PendingBatch, ReadAhead
from pipeline.reading.samples import SampleError, Samples

BATCHES_DECODING = 2
"""Batches that DALI has in hand while the consumer works on one."""

Graph = Callable[..., Pipeline]
"""Builds a pipeline from `source`, `batch_size` and `prefetch_queue_depth`."""


class DaliStream:
    """Decoded batches in the order of a `ReadAhead`, from any position.

    Args:
        source: what the graph is fed with.
        samples: names the sample that does not decode.
        graph: the graph, but for its source and its depth.
        batch_size: the largest batch.
        device: where the graph leaves its images, and the labels go.
        skip: leave out a sample that does not decode, and make its batch smaller.
    """

    def __init__(
        self,
        source: ReadAhead,
        samples: Samples,
        graph: Graph,
        batch_size: int,
        device: torch.device,
        *,
        skip: bool = False,
    ) -> None:
        self._source = source
        self._samples = samples
        self._graph = graph
        self._batch_size = batch_size
        self._device = device
        self._skip = skip
        self.skipped = 0
        """Samples left out of the batches that were given out."""
        self._pipeline: Pipeline | None = self._build()

    def seek(self, epoch: int, number: int) -> None:
        """Go on with this batch; costs nothing where it comes next anyway."""
        under_way = self._source.taken
        if not (under_way and (under_way[0].epoch, under_way[0].number) == (epoch, number)):
            self.seek_anew(epoch, number)

    def seek_anew(self, epoch: int, number: int) -> None:
        """Go on with this batch, and throw away what is under way."""
        pipeline = self._emptied()
        self._source.seek(epoch, number)
        pipeline.schedule_run()

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images and labels; raise as `decoded` does."""
        images, batch = self.decoded()
        return images, to_device(batch.labels, self._device)

    def decoded(self) -> tuple[torch.Tensor, PendingBatch]:
        """Return the next images, and the batch that they are.

        Raises:
            SampleError: a sample cannot be read or decoded; with `skip`, only if its batch has no other one.
        """
        assert self._pipeline is not None
        try:
            (images,) = self._pipeline.outputs(self._consumer_stream())
        except StopIteration:
            raise self._source.error or RuntimeError("no batch was asked for") from None
        except RuntimeError as error:
            self._pipeline = None
            self._after_failure(error)
            return self.decoded()
        batch = self._source.taken.popleft()
        self.skipped += int((~batch.kept).sum())
        self._pipeline.schedule_run()
        return to_torch(images), batch

    def close(self) -> None:
        """Let go of the threads and of what is decoded."""
        self._pipeline = None
        self._source.close()

    def _build(self) -> Pipeline:
        pipeline = self._graph(
            source=self._source.take, batch_size=self._batch_size, prefetch_queue_depth=BATCHES_DECODING
        )
        pipeline.build()
        return pipeline

    def _emptied(self) -> Pipeline:
        """Discard the batches in flight and return a pipeline that can start again."""
        self._source.stop()
        if self._pipeline is not None:
            try:
                self._pipeline.schedule_run()
                while True:
                    self._pipeline.outputs()
            except StopIteration:
                self._pipeline.reset()
            except RuntimeError:
                # A batch that nobody will see did not decode; DALI does not go on after that.
                self._pipeline = None
        self._source.taken.clear()
        self._pipeline = self._pipeline or self._build()
        return self._pipeline

    def _consumer_stream(self) -> torch.cuda.Stream | None:
        """On a GPU the consumer's stream waits for the batch, not the host."""
        return None if self._device.type == "cpu" else torch.cuda.current_stream(self._device)

    def _after_failure(self, error: RuntimeError) -> None:
        """Skip the samples that do not decode and read the batch again, or raise an error that names them."""
        batch = self._source.taken[0]
        culprits = self._culprits(batch)
        if not culprits:
            raise error
        if not self._skip or len(culprits) == len(batch.indices):
            raise culprits[0] from error
        for culprit in culprits:
            self._source.leave_out(culprit)
        self.seek_anew(batch.epoch, batch.number)

    def _culprits(self, batch: PendingBatch) -> list[SampleError]:
        """Decode a failed batch one by one, to name the samples that failed: the first one, or all to skip."""
        found: list[SampleError] = []
        for place, index in enumerate(batch.indices.tolist()):
            try:
                self._run_alone(batch, place)
            except RuntimeError as error:
                text = f"{self._samples.describe(index)} does not decode: {_reason(error)}"
                found.append(SampleError(text, index))
                if not self._skip:
                    break
        return found

    def _run_alone(self, batch: PendingBatch, place: int) -> None:
        # A pipeline that failed does not go on: each sample gets one of its own.
        self._graph(source=lambda: batch.graph_inputs_of(place), batch_size=1, prefetch_queue_depth=1).run()


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Hand an array over: on the CPU it is not copied."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    # From pinned memory the copy does not wait for the work that is queued on the GPU.
    return tensor.pin_memory().to(device, non_blocking=True)


def to_torch(images: Any) -> torch.Tensor:
    """Hand a batch over without a copy: the tensor owns the memory, DALI writes the next batch elsewhere.

    On a GPU, DALI takes memory back only after the work that was queued when the tensor was dropped.
    """
    return torch.from_dlpack(images.as_tensor())


def _reason(error: RuntimeError) -> str:
    """Pick the one line that says it out of DALI's account of where in the graph it was."""
    account = str(error)
    lines = account.partition("encountered:")[2].split("\n") or account.split("\n")
    return next((line.strip() for line in lines if line.strip()), account)
