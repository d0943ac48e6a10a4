"""The two DALI graphs, from JPEG files to a batch that a network takes: training, and evaluation beside it.

All crops lie in the central square of an image, whose side is the short side of the data set. Where a margin is odd,
centres are rounded as torchvision's CenterCrop does, halves to even: the centre crop is CenterCrop(short_side), then
CenterCrop(crop), and the ten crops are CenterCrop(short_side), then TenCrop(crop).

Nothing in them is random: what varies between images comes in with the files. The same lines run on a CPU
(`device="cpu"`) and on a GPU, where the JPEGs are decoded in part by the GPU ("mixed").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from nvidia.dali import fn, pipeline_def
from nvidia.dali.types import DALIDataType, DALIImageType

Device = Literal["cpu", "gpu"]


@pipeline_def
def train_graph(source: Callable[[], Any], *, short_side: int, crop: int, divisor: list[float], device: Device) -> Any:
    """Cut a given window out of the central square, flip, shift colours: float32 N,3,crop,crop.

    `source` gives, for each batch: the JPEG files; the window's corner (y, x) within the central square, int32 2;
    1 to mirror, int32; what to subtract from each channel, float32 3 (the mean less the lighting noise).
    """
    jpegs, offsets, flips, means = fn.external_source(
        source,
        num_outputs=4,
        dtype=[DALIDataType.UINT8, DALIDataType.INT32, DALIDataType.INT32, DALIDataType.FLOAT],
        ndim=[1, 1, 0, 1],
        no_copy=True,
    )
    crops = _decode(jpegs, _central_square(jpegs, short_side) + offsets, crop, device)
    return fn.crop_mirror_normalize(
        crops, mirror=flips, mean=means, std=divisor, dtype=DALIDataType.FLOAT, output_layout="CHW"
    )


@pipeline_def
def eval_graph(
    source: Callable[[], Any],
    *,
    short_side: int,
    crop: int,
    crops: int,
    mean: list[float],
    divisor: list[float],
    device: Device,
) -> Any:
    """Cut out the centre: float32 N,3,crop,crop; or for `crops=10` the four corners (upper left, upper right, lower
    left, lower right) and the centre of the central square, then those of the mirrored square: N,10,3,crop,crop.

    `source` gives the JPEG files of each batch.
    """
    jpegs = fn.external_source(source, dtype=DALIDataType.UINT8, ndim=1, no_copy=True)
    normalise = partial(fn.crop_mirror_normalize, mean=mean, std=divisor, dtype=DALIDataType.FLOAT, output_layout="CHW")
    slack = short_side - crop
    if crops == 1:
        return normalise(_decode(jpegs, _central_square(jpegs, short_side) + round(slack / 2), crop, device))
    square = _decode(jpegs, _central_square(jpegs, short_side), short_side, device)
    centre = round(slack / 2) / max(slack, 1)
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    views = [
        normalise(square, crop=(crop, crop), crop_pos_y=y, crop_pos_x=1 - x if mirror else x, mirror=mirror)
        for mirror in (0, 1)
        for y, x in [*corners, (centre, centre)]
    ]
    return fn.stack(*views)


def _central_square(jpegs: Any, short_side: int) -> Any:
    """Return the corner (y, x) of the central square: half of the margin, rounded to even as Python's round does."""
    height_width = fn.slice(fn.peek_image_shape(jpegs, dtype=DALIDataType.INT32), start=[0], shape=[2], axes=[0])
    margin = height_width - short_side
    return (margin + (margin // 2 & 1)) // 2


def _decode(jpegs: Any, corner: Any, side: int, device: Device) -> Any:
    """Decode only a square window of each image: uint8 side,side,3."""
    return fn.decoders.image_slice(
        jpegs,
        start=corner,
        shape=[side, side],
        axes=[0, 1],
        device="mixed" if device == "gpu" else "cpu",
        output_type=DALIImageType.RGB,
    )
