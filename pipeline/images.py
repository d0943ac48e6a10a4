"""`load_images`: JPEG files -> a batch on the device, through the graph of evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from errors import InputError
from pipeline.graphs import EvalGraph
from pipeline.reading.dali_stream import Decoder, to_torch
from pipeline.reading.samples import jpeg_size
from pipeline.views import Units, make_view
from preprocess.manifest import ColorStats

IMAGES_AT_A_TIME = 64
"""Images that are decoded at once."""


def load_images(
    jpegs: Sequence[bytes],
    *,
    short_side: int,
    color_stats: ColorStats,
    crop: int | None = None,
    crops: int = 1,
    units: Units = "grey",
    mean_image: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
) -> torch.Tensor:
    """Decode JPEG files as evaluation does, through the same graph: float32 N,3,H,W or N,10,3,H,W on the device.

    Args:
        jpegs: files as they lie in a shard: the shorter side is `short_side` pixels.
        short_side: as in the manifest of the data that the network was trained on.
        color_stats: the colour statistics of that data.
        mean_image: of that data, to subtract its central crop; None subtracts the channel mean.
        crop, crops, units, device, num_threads: as in `pipeline.loader.make_loader`.

    Raises:
        InputError: no file, or an argument has no valid value.
        RuntimeError: a file does not decode.
    """
    if not jpegs:
        raise InputError("jpegs is empty; use at least one image")
    view = make_view(short_side, color_stats, crop=crop, crops=crops, units=units, mean_image=mean_image)
    graph = EvalGraph(view, view.eval_window)
    starts = range(0, len(jpegs), IMAGES_AT_A_TIME)

    def inputs() -> Iterator[tuple[Any, ...]]:
        for start in starts:
            part = jpegs[start : start + IMAGES_AT_A_TIME]
            sizes = np.array([jpeg_size(jpeg) for jpeg in part], np.int32)
            yield [np.frombuffer(jpeg, np.uint8) for jpeg in part], *graph.offsets(sizes)

    pipeline = Decoder.on(device, num_threads).build(graph, inputs(), min(len(jpegs), IMAGES_AT_A_TIME), 1)
    return torch.cat([to_torch(pipeline.run()[0]) for _ in starts])
