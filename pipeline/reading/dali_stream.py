"""Runs a DALI graph ahead of its consumer and hands its batches over as torch tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline

from errors import InputError, check_count
from machine_limits import cpu_count
from pipeline.graphs import Graph
from pipeline.reading.read_ahead import PendingBatch, ReadAhead
from pipeline.reading.samples import SampleError

BATCHES_DECODING = 2
"""Batches that DALI has in hand while the consumer works on one."""

SPARE_THREADS = 1
"""Additional decoding threads on the CPU: they keep a core busy whose thread waits for the last image of a batch."""


@dataclass(frozen=True)
class Decoder:
    """The device and the number of CPU threads that run a graph."""

    device: torch.device
    num_threads: int

    @classmethod
    def on(cls, device: str | torch.device, num_threads: int | None) -> Decoder:
        """Return a decoder on `cpu`, `cuda` or `cuda:N`; `num_threads` None takes all CPUs of this process.

        Raises:
            InputError: this machine has no such device, or the number is below 1.
        """
        if num_threads is not None:
            check_count("num_threads", num_threads, 1)
        return cls(_checked_device(device), num_threads or cpu_count())

    def build(
        self, graph: Graph, source: Callable[[], Any] | Iterator[Any], batch_size: int, batches_ahead: int
    ) -> Pipeline:
        """Build a pipeline whose `source` gives, for each batch, the JPEG files and the graph's parameters."""
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            # DALI reads it before its first pipeline. Smaller blocks than this return to the kernel when they are
            # freed, and a new one waits for zeroed pages.
            os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "1M")
        pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=self.num_threads + (SPARE_THREADS if on_cpu else 0),
            device_id=self.device.index,
            prefetch_queue_depth=batches_ahead,
        )
        with pipeline:
            jpegs, *parameters = fn.external_source(source, num_outputs=1 + graph.num_parameters, no_copy=True)
            pipeline.set_outputs(graph.define(jpegs, parameters, "cpu" if on_cpu else "gpu"))
        pipeline.build()
        return pipeline


class DaliStream:
    """Decoded batches in the order of a `ReadAhead`, from any position; they are on the decoder's device.

    A sample that does not decode is left out if the source skips those that cannot be read.
    """

    def __init__(self, source: ReadAhead, graph: Graph, decoder: Decoder) -> None:
        self._source = source
        self._graph = graph
        self._decoder = decoder
        self._device = decoder.device
        self.skipped = 0
        """Samples left out of the batches that were given out."""
        self._pipeline: Pipeline | None = self._build()

    def seek(self, epoch: int, number: int) -> None:
        """Go on with this batch; costs nothing where it comes next anyway."""
        under_way = self._source.taken
        if not (under_way and (under_way[0].epoch, under_way[0].number) == (epoch, number)):
            self.restart(epoch, number)

    def restart(self, epoch: int, number: int) -> None:
        """Go on with this batch, and throw away what is under way."""
        pipeline = self._emptied()
        self._source.seek(epoch, number)
        pipeline.schedule_run()

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images and labels; raise as `decoded` does."""
        images, batch = self.decoded()
        return images, to_device(batch.files.labels, self._device)

    def decoded(self) -> tuple[torch.Tensor, PendingBatch]:
        """Return the next images, and the batch that they are.

        Raises:
            SampleError: a sample cannot be read or decoded; where they are left out, only if its batch has no other.
        """
        assert self._pipeline is not None
        # The consumer's stream waits for the batch, not the host.
        stream = None if self._device.type == "cpu" else torch.cuda.current_stream(self._device)
        try:
            (images,) = self._pipeline.outputs(stream)
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
        return self._decoder.build(self._graph, self._take, self._source.plan.rank_slice.batch_size, BATCHES_DECODING)

    def _take(self) -> tuple[Any, ...]:
        batch = self._source.take()
        return batch.jpegs, *batch.parameters(self._graph)

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

    def _after_failure(self, error: RuntimeError) -> None:
        """Skip the samples that do not decode and read the batch again, or raise an error that names them."""
        batch = self._source.taken[0]
        culprits = self._culprits(batch)
        if not culprits:
            raise error
        if not self._source.skip or len(culprits) == len(batch.indices):
            raise culprits[0] from error
        for culprit in culprits:
            self._source.leave_out(culprit)
        self.restart(batch.epoch, batch.number)

    def _culprits(self, batch: PendingBatch) -> list[SampleError]:
        """Decode a failed batch one by one, to name the samples that failed: the first one, or all to skip."""
        found: list[SampleError] = []
        parameters = batch.parameters(self._graph)
        for position, index in enumerate(batch.indices.tolist()):
            one = slice(position, position + 1)
            inputs = batch.files.jpegs[one], *(values[one] for values in parameters)
            try:
                # A pipeline that failed does not go on: each sample gets one of its own.
                self._decoder.build(self._graph, iter([inputs]), 1, 1).run()
            except RuntimeError as error:
                # DALI says first where in the graph it was.
                reason = str(error).partition("encountered:")[2].strip().partition("\n")[0].strip() or str(error)
                found.append(SampleError(f"{self._source.samples.describe(index)} does not decode: {reason}", index))
                if not self._source.skip:
                    break
        return found


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


def _checked_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}: no such device; use cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cuda" or (device.index or 0) >= count:
        there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        raise InputError(f"device is {str(name)!r}: this machine has no such device; use {there}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
