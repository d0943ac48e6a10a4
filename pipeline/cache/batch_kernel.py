"""The one pass from kept squares to a batch: crop, flip, lighting, colour conversion, mean and units."""

from __future__ import annotations

import logging
import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.augment import AugmentParams
from pipeline.cache.formats import PixelFormat
from pipeline.reading.dali_stream import to_device

LOG = logging.getLogger(__name__)

GROUP_PIXELS = 1 << 19
"""Pixels of the views computed at once on the CPU: the intermediate results then fit into the CPU caches, and the
allocator keeps their memory instead of returning it to the kernel."""

SPARE_BUFFERS = 3
"""Buffers kept while nobody uses them; a consumer holds one batch or two."""


class CropFlipNormalize:
    """Makes batches of `images` views each, float32 images,3,crop,crop on the device.

    `torch.compile` makes it a few loops of vectors (one graph: all shapes are fixed). Where there is no compiler the
    same lines run one after another, slower and to the same bits: what `PixelFormat.to_rgb` gives is exact, and one
    subtraction at a time and one product are rounded the same everywhere. `mean_crop`, float32 3,crop,crop, is
    subtracted from every view in addition to the mean of its parameters.
    """

    def __init__(
        self, pixel_format: PixelFormat, images: int, crop: int, mean_crop: np.ndarray | None, device: torch.device
    ) -> None:
        self._pixel_format = pixel_format
        self._device = device
        most = max(1, GROUP_PIXELS // crop**2) if device.type == "cpu" else images
        groups = math.ceil(images / most)
        self._group = math.ceil(images / groups)
        self._shape = (groups * self._group, 3, crop, crop)
        self._mean_crop = torch.from_numpy(np.zeros((3, 1, 1), np.float32) if mean_crop is None else mean_crop)
        self._mean_crop = self._mean_crop.to(device)
        # On a GPU torch's own allocator uses memory again.
        self._buffers = Buffers(self._shape) if device.type == "cpu" else None
        self._fill: Callable[..., None] = torch.compile(_fill_views, dynamic=False, fullgraph=True)

    def __call__(self, rows: Tensor, numbers: np.ndarray, params: AugmentParams) -> Tensor:
        """Make views of the rows with these numbers (int64); on the CPU memory is used again once nothing holds it.

        The rows, uint8 n,bytes, are on the device. The shapes in `params` are always `crop`.
        """
        # Shapes are fixed: the last group is filled up with the first views.
        cycle = np.arange(math.ceil(len(numbers) / self._group) * self._group) % len(numbers)
        corners, _, flips, means, divisors = (values[cycle] for values in params)
        given = [to_device(values, self._device) for values in (numbers[cycle], corners, flips, means, 1 / divisors)]
        images = self._buffers.take() if self._buffers else torch.empty(self._shape, device=self._device)
        with torch.no_grad():
            for group in zip(*(values.split(self._group) for values in (*given, images[: len(cycle)])), strict=True):
                self._run(self._pixel_format, self._mean_crop, rows, *group)
        return images[: len(numbers)]

    def _run(self, *arguments: Any) -> None:
        try:
            self._fill(*arguments)
        except Exception as error:
            if self._fill is _fill_views:
                raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            LOG.warning("the pass over the cache is not compiled, so it is slower: %s", reason)
            self._fill = _fill_views
            self._fill(*arguments)


class Buffers:
    """Tensors of one shape whose memory is used again as soon as nobody holds what was in it.

    Fresh memory for a large tensor costs about as much as filling it: the kernel clears pages.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._spare: deque[np.ndarray] = deque(maxlen=SPARE_BUFFERS)

    def take(self) -> Tensor:
        """Return a float32 tensor of unspecified content: it is the caller's for as long as any view of it lives."""
        memory = self._spare.pop() if self._spare else np.empty(self._shape, np.float32)
        # The storage of a tensor from numpy holds this array, and lets go of it with the last tensor that uses it.
        lent = memory.view()
        weakref.finalize(lent, self._spare.append, memory).atexit = False
        return torch.from_numpy(lent)


def _fill_views(
    pixel_format: PixelFormat,
    mean_crop: Tensor,
    rows: Tensor,
    numbers: Tensor,
    corners: Tensor,
    flips: Tensor,
    means: Tensor,
    factors: Tensor,
    out: Tensor,
) -> None:
    crop = out.shape[-1]
    columns = torch.arange(crop, device=out.device)
    packed = pixel_format.read_windows(rows, numbers, corners[:, 0, None] + columns.int(), corners[:, 1], crop)
    mirrored = torch.where(flips[:, None, None] == 1, crop - 1 - columns, columns).expand(packed.shape)
    packed = torch.empty_like(packed).scatter_(2, mirrored, packed)
    rgb = pixel_format.to_rgb(packed)
    out.copy_((rgb - means[:, :, None, None] - mean_crop) * factors[:, :, None, None])
