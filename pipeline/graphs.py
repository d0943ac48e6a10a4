"""The DALI graphs: JPEG files to training batches, to evaluation batches, and to decoded squares for the cache.

They contain no randomness: the parameters of each image come in with its file. The same graphs run on a CPU
(`device="cpu"`) and on a GPU, which decodes part of the JPEGs ("mixed").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from nvidia.dali import fn
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType

from pipeline.augment import EpochPlan
from pipeline.crops import centre_corners, relative_offsets, view_corners
from pipeline.views import ViewSpec

Device = Literal["cpu", "gpu"]

GPU_DECODER: dict[str, Any] = {
    "device": "mixed",
    # Part of a batch that goes to the GPU's JPEG engines, the rest to processor and GPU together: `benchmarks.decoder`.
    "hw_decoder_load": 0.8,
    # Chroma interpolated as on the processor, at about the speed of repeating it. The mean difference from the
    # processor's pixels is then 0.6 grey levels, 0.7 for the worst image; with repeated chroma it is 1.1, and 3.1.
    "jpeg_fancy_upsampling": True,
}
"""Options of DALI's decoder on a GPU; its own for memory padding made no difference."""


@dataclass(frozen=True)
class TrainGraph:
    """Cut a random crop out of each image, mirror it, shift and scale its colours: float32 N,3,crop,crop."""

    view: ViewSpec
    resized: bool
    """Crops have shapes of their own, and are resized."""

    @property
    def num_parameters(self) -> int:
        """Number of arrays that `parameters` returns."""
        return 7 if self.resized else 5

    def parameters(self, plan: EpochPlan, positions: slice, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the parameters of a batch from its global positions, and height and width of its images (int n,2).

        They are the relative offsets of the crops, their shapes if they are resized, flips, means and divisors.
        """
        corners, shapes, *rest = plan.params(positions, sizes)
        own = np.ascontiguousarray(shapes.T, np.float32) if self.resized else ()
        return *relative_offsets(corners, sizes, shapes), *own, *rest

    def define(self, jpegs: Any, parameters: Sequence[Any], device: Device) -> Any:
        """Return the node of the images from those of the files and parameters: the mean image is never flipped."""
        top, left, *shape, flips, means, divisors = parameters
        crop = self.view.crop
        crops = _decode(jpegs, (top, left), shape or (crop, crop), device)
        if self.resized:
            crops = fn.resize(crops, size=[crop, crop], interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)
        if self.view.mean_crop is None:
            return _to_planes(crops, mirror=flips, mean=means, std=divisors)
        planes = _to_planes(crops, mirror=flips, mean=means)
        divisors = fn.reshape(divisors.gpu() if device == "gpu" else divisors, shape=[3, 1, 1])
        return (planes - Constant(self.view.mean_crop, device=device)) / divisors


@dataclass(frozen=True)
class SquareGraph:
    """Decode the central window of each image: uint8 N,side,side,3."""

    view: ViewSpec
    side: int
    """Of the windows, in pixels."""
    num_parameters: ClassVar[int] = 2

    def parameters(self, _plan: EpochPlan, _positions: slice, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the relative offsets of the central windows of a batch."""
        return self.offsets(sizes)

    def offsets(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the relative offsets of the central windows of images of these sizes (int n,2)."""
        return relative_offsets(centre_corners(sizes, self.view.short_side, self.side), sizes, self.side)

    def define(self, jpegs: Any, parameters: Sequence[Any], device: Device) -> Any:
        """Return the node of the images."""
        return _decode(jpegs, parameters, (self.side, self.side), device)


@dataclass(frozen=True)
class EvalGraph(SquareGraph):
    """Decode the central window of each image and normalise its views: float32 N,3,crop,crop or N,10,3,crop,crop.

    Ten crops are the four corners (upper left, upper right, lower left, lower right) and the centre of the central
    square, then those of the mirrored square.
    """

    def define(self, jpegs: Any, parameters: Sequence[Any], device: Device) -> Any:
        """Return the node of the images."""
        window, view = super().define(jpegs, parameters, device), self.view
        if view.crops == 1:
            return self._normalised(window, device)
        corners, mirrored = view_corners(self.side - view.crop, view.crops)
        top, left = relative_offsets(corners, np.full_like(corners, self.side), view.crop)
        size = (view.crop, view.crop)
        views = [
            self._normalised(window, device, crop=size, crop_pos_y=y, crop_pos_x=x, mirror=mirror)
            for y, x, mirror in zip(top.tolist(), left.tolist(), mirrored.tolist(), strict=True)
        ]
        return fn.stack(*views)

    def _normalised(self, window: Any, device: Device, **crop: Any) -> Any:
        mean, divisor = self.view.channel_mean.tolist(), self.view.divisor.tolist()
        if self.view.mean_crop is None:
            return _to_planes(window, mean=mean, std=divisor, **crop)
        scale = np.asarray(divisor, np.float32)[:, None, None]
        return _to_planes(window, std=divisor, **crop) - Constant(self.view.mean_crop / scale, device=device)


Graph = TrainGraph | SquareGraph
"""A DALI graph, from JPEG files and parameters of each image to images."""


def _decode(jpegs: Any, offsets: Sequence[Any], shape: Sequence[Any], device: Device) -> Any:
    """Decode a window of each image: uint8 height,width,3.

    The window is given by its relative offsets, see `pipeline.crops.relative_offsets`: `image_slice`, which takes
    corners, is slower by some per cent. The processor decodes only the window. A GPU is faster with the entire image,
    from which a window's chroma has to be interpolated anyway.
    """
    (top, left), (height, width) = offsets, shape
    window = {"crop_pos_y": top, "crop_pos_x": left, "crop_h": height, "crop_w": width, "rounding": "round"}
    if device == "gpu":
        return fn.crop(fn.decoders.image(jpegs, output_type=DALIImageType.RGB, **GPU_DECODER), **window)
    return fn.decoders.image_crop(jpegs, **window, output_type=DALIImageType.RGB)


def _to_planes(images: Any, **options: Any) -> Any:
    return fn.crop_mirror_normalize(images, dtype=DALIDataType.FLOAT, output_layout="CHW", **options)
