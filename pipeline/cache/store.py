"""Decoded squares and labels, kept after their first use."""

from __future__ import annotations

import os
import weakref

import numpy as np
import torch
from torch import Tensor

from errors import InputError
from pipeline.cache.formats import PixelFormat
from pipeline.cache.memory import available_bytes
from pipeline.reading.dali_stream import to_device

PACKED_PIXELS = 1 << 20
"""Pixels that are packed at once on the CPU: few enough for its own caches."""

_KEPT: weakref.WeakSet[Cache] = weakref.WeakSet()
"""The caches of this process: their memory counts as available until it is filled."""


class Cache:
    """Squares and labels of the samples of one rank, empty at first.

    Args:
        cached_samples: the samples that it keeps, int64, ascending.
        samples: number of samples in the split.
        pixel_format: of the squares.
        device: of the squares.

    Raises:
        InputError: it does not fit into the memory that is available.
    """

    def __init__(
        self, cached_samples: np.ndarray, samples: int, pixel_format: PixelFormat, device: torch.device
    ) -> None:
        self.pixel_format = pixel_format
        self._numbers = np.full(samples, -1)
        self._numbers[cached_samples] = np.arange(len(cached_samples))
        self._labels = np.empty(len(cached_samples), np.int64)
        self.held = np.ones(samples, bool)
        """For each sample whether there is nothing to do: it is here, or not one of `cached_samples`."""
        self.held[cached_samples] = False
        self._check_fits(len(cached_samples), device)
        # Not touched until it is filled: the kernel gives memory page by page.
        self._rows = torch.empty((len(cached_samples), pixel_format.bytes), dtype=torch.uint8, device=device)
        if device.type == "cpu":
            _KEPT.add(self)

    def put(self, indices: np.ndarray, images: Tensor, labels: np.ndarray) -> None:
        """Keep samples: their squares, uint8 n,side,side,3 on the device or the host, and labels."""
        numbers = self._numbers[indices]
        at_once = len(images) if images.is_cuda else max(1, PACKED_PIXELS // (images.shape[1] * images.shape[2]))
        rows = to_device(numbers, self._rows.device).split(at_once)
        for numbers_of_part, part in zip(rows, images.split(at_once), strict=True):
            self._rows[numbers_of_part] = self.pixel_format.pack(part).to(self._rows.device)
        self._labels[numbers] = labels
        self.held[indices] = True

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels of samples, int64."""
        return self._labels[self._numbers[indices]]

    def rows(self, indices: np.ndarray, most: int, device: torch.device) -> tuple[Tensor, np.ndarray]:
        """Return rows on a device, uint8 k,bytes, and the position of each sample among them, int64 n.

        From another device only the rows of the samples are copied, into a tensor of `most` rows, so that every batch
        has the same shape.
        """
        numbers = self._numbers[indices]
        if self._rows.device == device:
            return self._rows, numbers
        # From pinned memory the copy does not wait for the work that is queued on the GPU.
        staging = torch.empty((most, self.pixel_format.bytes), dtype=torch.uint8, pin_memory=True)
        torch.index_select(self._rows, 0, torch.from_numpy(numbers), out=staging[: len(numbers)])
        return staging.to(device, non_blocking=True), np.arange(len(numbers))

    def close(self) -> None:
        """Give the memory back, even where something still holds this."""
        _KEPT.discard(self)
        self._rows = torch.empty(0)

    def _check_fits(self, images: int, device: torch.device) -> None:
        available, needed, others = available_bytes(device), images * self.pixel_format.bytes, 0
        if device.type == "cpu":
            # Memory that is promised but not taken yet: of the other caches of this process, and of the other processes
            # of this training on this machine, as torchrun and Ray Train count them.
            others = sum(int((~cache.held).sum()) * cache.pixel_format.bytes for cache in _KEPT)
            others += (int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1) * (needed + others)
        if needed + others > available:
            reserved = f" in addition to {_gb(others)} of other caches on this machine" if others else ""
            raise InputError(
                f"cache needs {_gb(needed)} for {images} images of {self.pixel_format.bytes} bytes{reserved}: only "
                f"{_gb(available)} of memory are free on {device}; use --cache none, or more ranks, each of which "
                "keeps a part"
            )


def _gb(count: int) -> str:
    return f"{count / 1e9:.4g} GB"
