"""The activations of a network: the maps of its convolutions for one image."""

from __future__ import annotations

from torch import Tensor, nn

from training.load_model import LoadedModel
from training.loop.step import log_probabilities
from training.predict import make_input
from training.report.feature_maps import LayerMaps

LEAST_SIDE = 3
"""Least side of a map in pixels: what is smaller, such as that of a fully connected layer, is no picture."""


def convolution_maps(trained: LoadedModel, jpeg: bytes) -> list[LayerMaps]:
    """Return the positive parts of the maps of each convolution, first layer first, for a sample as it is stored.

    With ReLUs these are what the next layer sees (before pooling and normalisation).
    """
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output[0].detach().float().clamp(min=0).cpu())

    layers = [module for module in trained.network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        log_probabilities(trained.network, make_input(trained, [jpeg]), trained.autocast)
    finally:
        for hook in hooks:
            hook.remove()
    pictures = [maps for maps in found if min(maps.shape[1:]) >= LEAST_SIDE]
    return [LayerMaps(f"conv{number}", maps.numpy()) for number, maps in enumerate(pictures, start=1)]
