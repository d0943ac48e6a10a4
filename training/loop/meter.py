"""The measurements between two points of the training curves."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from errors import InputError
from training.parallel.layout import Layout


class DivergenceError(RuntimeError):
    """The loss is no longer a number; trying again from the same state would end the same way."""


class Meter:
    """Loss, speed and waiting time since the last reading, over all workers."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        # The loss is summed on the device: reading it at each step would stall a GPU.
        self._loss = torch.zeros((), dtype=torch.float64, device=self._layout.device)
        self._images = self._images_before = 0
        self.start_clock()

    def start_clock(self) -> None:
        """Measure speed and waiting time from now on."""
        self._waited, self._since = 0.0, time.perf_counter()

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same batches and count the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def sums(self) -> tuple[float, int]:
        """Return the sum of the losses, and the number of images, that this device has counted."""
        return self._loss.item(), self._images

    def restore(self, loss_sum: float, images: int) -> None:
        """Go on from `sums`; these images do not count for the speed."""
        self.reset()
        self._loss += loss_sum
        self._images = images
        self._images_before = images

    def add(self, loss_sum: Tensor, images: int) -> None:
        """Count a batch of `images` with this sum of losses."""
        self._loss += loss_sum
        self._images += images

    def read(self) -> dict[str, float]:
        """Return the metrics since the last reading; all workers must call it together.

        Raises:
            DivergenceError: the loss is infinite or not a number.
            InputError: all samples have been left out.
        """
        elapsed = time.perf_counter() - self._since
        rest = self._loss.new_tensor([self._images, self._images_before, self._waited])
        own = torch.cat([self._loss[None], rest])
        loss, images, before, waited = self._layout.sum_over_batch_ranks(own).tolist()
        self.reset()
        if not images:
            raise InputError("not one of the train samples since the last point of the curves decodes")
        if not math.isfinite(loss):
            raise DivergenceError(f"the training loss is {loss}: use a lower optimizer.learning_rate")
        return {
            "train/loss": loss / images,
            "train/images_per_second": (images - before) / elapsed,
            "train/data_wait": waited / elapsed / self._layout.num_batch_ranks,
        }
