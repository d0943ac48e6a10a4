"""The DALI graphs: JPEG files to training batches, to evaluation batches, and to decoded squares for the cache.

They contain no randomness: the parameters of each image come in with its file (`pipeline.inputs`). The same graphs
run on a CPU (`device="cpu"`) and on a GPU, which decodes part of the JPEGs ("mixed").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from nvidia.dali import fn, pipeline_def
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType

from pipeline.crops import relative_offsets, view_corners

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

SPARE_THREADS = 1
"""Additional decoding threads on the CPU: they keep a core busy whose thread waits for the last image of a batch."""

CPU_ENVIRONMENT = {"DALI_MALLOC_POOL_THRESHOLD": "1M"}
"""Settings that DALI reads before its first pipeline. Blocks from this size on come from its memory pool; by
default the decoded images return to the kernel, and each batch waits for zeroed pages."""

JPEGS = (DALIDataType.UINT8, 1)
PARTS = (DALIDataType.FLOAT, 0)
FLAGS = (DALIDataType.INT32, 0)
COLOURS = (DALIDataType.FLOAT, 1)


@pipeline_def
def train_graph(
    source: Callable[[], Any], *, crop: int, resized: bool, mean_crop: np.ndarray | None, device: Device
) -> Any:
    """Cut a given window out of each image, flip, shift and scale colours: float32 N,3,crop,crop.

    `source` gives, for each batch: the JPEG files; where the window lies, as `_decode` says; where windows are
    `resized` to `crop`, their height and their width, float32 each; 1 to mirror, int32; what to subtract from each
    channel and what to divide it by, float32 3. `mean_crop`, float32 3,crop,crop, is subtracted after the flip.
    """
    shapes = [PARTS, PARTS] if resized else []
    given = _inputs(source, [JPEGS, PARTS, PARTS, *shapes, FLAGS, COLOURS, COLOURS])
    jpegs, top, left, *shape, flips, means, divisors = given
    crops = _decode(jpegs, (top, left), shape or (crop, crop), device)
    if resized:
        crops = fn.resize(crops, size=[crop, crop], interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)
    if mean_crop is None:
        return _to_planes(crops, mirror=flips, mean=means, std=divisors)
    planes = _to_planes(crops, mirror=flips, mean=means)
    divisors = fn.reshape(divisors.gpu() if device == "gpu" else divisors, shape=[3, 1, 1])
    return (planes - Constant(mean_crop, device=device)) / divisors


@pipeline_def
def eval_graph(
    source: Callable[[], Any],
    *,
    short_side: int,
    crop: int,
    crops: int,
    mean: list[float],
    mean_crop: np.ndarray | None,
    divisor: list[float],
    device: Device,
) -> Any:
    """Cut out the centre: float32 N,3,crop,crop; or for `crops=10` the four corners (upper left, upper right, lower
    left, lower right) and the centre of the central square, then those of the mirrored square: N,10,3,crop,crop.

    `source` gives, for each batch, the JPEG files and where the centre crop lies, for ten crops the central square, as
    `_decode` says. What is subtracted from each view is `mean` or, float32 3,crop,crop, `mean_crop`.
    """
    jpegs, *place = _inputs(source, [JPEGS, PARTS, PARTS])

    def normalise(images: Any, **view: Any) -> Any:
        if mean_crop is None:
            return _to_planes(images, mean=mean, std=divisor, **view)
        scale = np.asarray(divisor, np.float32)[:, None, None]
        return _to_planes(images, std=divisor, **view) - Constant(mean_crop / scale, device=device)

    if crops == 1:
        return normalise(_decode(jpegs, place, (crop, crop), device))
    square = _decode(jpegs, place, (short_side, short_side), device)
    corners, mirrored = view_corners(short_side - crop, crops)
    top, left = relative_offsets(corners, np.full_like(corners, short_side), crop)
    views = [
        normalise(square, crop=(crop, crop), crop_pos_y=y, crop_pos_x=x, mirror=mirror)
        for y, x, mirror in zip(top.tolist(), left.tolist(), mirrored.tolist(), strict=True)
    ]
    return fn.stack(*views)


@pipeline_def
def square_graph(source: Callable[[], Any], *, side: int, device: Device) -> Any:
    """Decode a given window of each image, nothing else: uint8 N,side,side,3.

    `source` gives, for each batch, the JPEG files and where the window lies, as `_decode` says.
    """
    jpegs, *place = _inputs(source, [JPEGS, PARTS, PARTS])
    return _decode(jpegs, place, (side, side), device)


def _inputs(source: Callable[[], Any], kinds: list[tuple[DALIDataType, int]]) -> Any:
    types, dimensions = zip(*kinds, strict=True)
    return fn.external_source(source, num_outputs=len(kinds), dtype=[*types], ndim=[*dimensions], no_copy=True)


def _decode(jpegs: Any, place: Sequence[Any], shape: Sequence[Any], device: Device) -> Any:
    """Decode a window of each image: uint8 height,width,3.

    Args:
        jpegs: the files.
        place: from the top and from the left, each as a part of the room that the window leaves: see
            `pipeline.crops.relative_offsets`. (`image_slice`, which takes corners, is the slower one by some per cent.)
        shape: height and width of the window in pixels.
        device: that decodes. The processor decodes only the window. A GPU is faster with the whole image, which a
            window's chroma needs to be interpolated from anyway.
    """
    (top, left), (height, width) = place, shape
    window = {"crop_pos_y": top, "crop_pos_x": left, "crop_h": height, "crop_w": width, "rounding": "round"}
    if device == "gpu":
        return fn.crop(fn.decoders.image(jpegs, output_type=DALIImageType.RGB, **GPU_DECODER), **window)
    return fn.decoders.image_crop(jpegs, **window, output_type=DALIImageType.RGB)


def _to_planes(images: Any, **options: Any) -> Any:
    return fn.crop_mirror_normalize(images, dtype=DALIDataType.FLOAT, output_layout="CHW", **options)
