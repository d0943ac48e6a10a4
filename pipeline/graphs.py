"""The two DALI graphs, from JPEG files to a batch that a network takes: training, and evaluation beside it.

Nothing in them is random: what varies between images comes in with the files. The same lines run on a CPU
(`device="cpu"`) and on a GPU, where the JPEGs are decoded in part by the GPU ("mixed").
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Cut out the centre: float32 N,3,crop,crop; or for `crops=10` the four corners and the centre of the central
    square, then the same five mirrored: N,10,3,crop,crop.

    `source` gives the JPEG files of each batch.
    """
    jpegs = fn.external_source(source, dtype=DALIDataType.UINT8, ndim=1, no_copy=True)
    side = crop if crops == 1 else short_side
    square = _decode(jpegs, _central_square(jpegs, short_side) + (short_side - side) // 2, side, device)
    views = [
        fn.crop_mirror_normalize(
            square,
            crop=(crop, crop),
            crop_pos_y=y,
            crop_pos_x=x,
            rounding="truncate",
            mirror=mirror,
            mean=mean,
            std=divisor,
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
        )
        for mirror, y, x in (_TEN_VIEWS if crops == 10 else [_CENTRE])
    ]
    return views[0] if crops == 1 else fn.stack(*views)


_CENTRE = (0, 0.5, 0.5)
_TEN_VIEWS = [
    (mirror, y, x) for mirror in (0, 1) for y, x in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
]


def _central_square(jpegs: Any, short_side: int) -> Any:
    """Return the corner (y, x) of the central square, rounded down where the margin is odd."""
    height_width = fn.slice(fn.peek_image_shape(jpegs, dtype=DALIDataType.INT32), start=[0], shape=[2], axes=[0])
    return (height_width - short_side) // 2


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
