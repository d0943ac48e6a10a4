"""Nearest images by the Euclidean distance of the last hidden layer's features (2012 paper, section 6.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from errors import InputError
from pipeline.loader import Loader
from training.load_model import LoadedModel
from training.loop.step import log_probabilities
from training.report.retrieval import NEAREST, Retrieval

QUERIES, IMAGES = 1_000, 20_000
"""Most queries, and most images that are searched."""
PIXELS = 32
"""Side to which an image is averaged for the distance of pixels."""
QUERIES_AT_ONCE = 100
"""Queries whose distances to all images are held at once."""


class _Embedded(NamedTuple):
    features: Tensor
    """float32 N,D, on the CPU."""
    pixels: Tensor
    """float32 N,3 * PIXELS ** 2, on the CPU."""
    labels: Tensor
    """int64 N, on the CPU."""


def retrieve(trained: LoadedModel, queries: Loader, images: Loader, split: str) -> Retrieval:
    """Find the six nearest of the first `IMAGES` images of `split` for each of the first `QUERIES` queries.

    The features are the inputs of the last layer, in evaluation mode. Pixels are those of the network's input, averaged
    to `PIXELS` squared: the baseline.

    Args:
        trained: the network.
        queries: a loader of one crop.
        images: the same of the split that is searched.
        split: its name.

    Raises:
        InputError: it has fewer than six images.
    """
    found = _embed(trained, images, IMAGES, f"read {split}")
    if len(found.labels) < NEAREST:
        raise InputError(
            f"--retrieve-from is {split}: it has {len(found.labels)} images; use a split of at least {NEAREST}"
        )
    asked = _embed(trained, queries, QUERIES, "read queries")
    return Retrieval(
        split=split,
        by_features=_nearest(asked.features, found.features).numpy(),
        by_pixels=_nearest(asked.pixels, found.pixels).numpy(),
        query_labels=asked.labels.numpy(),
        labels=found.labels.numpy(),
        read_example=images.example,
    )


def _embed(trained: LoadedModel, loader: Loader, most: int, purpose: str) -> _Embedded:
    """Return features, pixels and labels of the first `most` images."""
    features: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(inputs[0].detach().flatten(1).float().cpu())

    layer = trained.network.get_submodule(trained.architecture.last_layer)
    hook = layer.register_forward_pre_hook(keep)
    pixels, labels, done = [], [], 0
    try:
        for images, truth in tqdm(loader, desc=purpose, unit="batch", disable=None):
            log_probabilities(trained.network, images, trained.autocast)
            pixels.append(F.adaptive_avg_pool2d(images, PIXELS).flatten(1).cpu())
            labels.append(truth.cpu())
            done += len(truth)
            if done >= most:
                break
    finally:
        hook.remove()
    return _Embedded(*(torch.cat(parts)[:most] for parts in (features, pixels, labels)))


def _nearest(queries: Tensor, images: Tensor) -> Tensor:
    """Return the positions of the `NEAREST` images of each query, nearest first: int64 Q,NEAREST."""
    parts = [torch.cdist(part, images).topk(NEAREST, largest=False).indices for part in queries.split(QUERIES_AT_ONCE)]
    return torch.cat(parts)
