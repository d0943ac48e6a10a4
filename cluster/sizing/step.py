"""The time of a training step on one device: a roofline for each layer, plus the values that other layers move.

Williams, Waterman, Patterson 2009, "Roofline: an insightful visual performance model": a layer takes as long as its
operations or its traffic with the memory, whichever is slower. Layers run one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.sizing.constants import Constants, Device, Precision
from cluster.sizing.networks import Layer, training_passes

VALUE_BYTES: dict[Precision, int] = {"bfloat16": 2, "float32": 4}
PARAMETER_BYTES = 4
"""Weights, gradients and momentum stay in float32 in both precisions."""
ELEMENTWISE_VALUES = 5
"""Values moved for each value of an activation or of a pooling: forward reads one and writes one, backward reads the
gradient and what was saved, and writes one. A compiler merges them into one pass."""
LRN_VALUES = {False: 70, True: 17}
"""The same of LRN, eager and compiled; counted in `training/models/lrn.py`: eager, every operation of its forward (32)
and backward (38) reads and writes memory; compiled, 7 and 10 are left."""
UPDATE_VALUES = {False: 13, True: 8}
"""Values moved for each parameter by the optimizer, eager and fused, with the gradient's write and the copy in
bfloat16. Eager: weight decay, momentum and update are operations of their own."""

LayerLoad = tuple[Layer, float]
"""A layer, or the shard of one, and the number of images that it sees in a step."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one device, without communication."""

    convolutions: float
    fully_connected: float
    elementwise: float
    """Activations, pooling and LRN."""
    update: float
    """The optimizer's."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.convolutions + self.fully_connected + self.elementwise + self.update

    @property
    def convolutions_backward(self) -> float:
        """Seconds of the backward pass of the convolutions, two of its three parts."""
        return self.convolutions * 2 / 3


def estimate_step(
    loads: Sequence[LayerLoad], constants: Constants, device: Device, precision: Precision, compiled: bool, cores: int
) -> StepTime:
    """Return the time of a step.

    Args:
        loads: the layers on the device.
        constants: for the attained parts of the peak.
        device: a GPU, or one core of a CPU.
        precision: number format of the products.
        compiled: `torch.compile` and the fused optimizer, or eager operations.
        cores: cores of a CPU that compute; the speed is taken to grow with them.
    """
    if device.kind == "cpu":
        return _estimate_cpu(loads, constants, device, precision, compiled, cores)
    seconds = {True: 0.0, False: 0.0}
    moved = 0.0
    for layer, images in loads:
        seconds[layer.is_convolution] += _layer_seconds(layer, images, constants, device, precision)
        moved += images * _elementwise_values(layer, compiled) * VALUE_BYTES[precision]
    assert device.memory_gb_per_s is not None
    updated = sum(layer.parameters for layer, _ in loads) * UPDATE_VALUES[compiled] * PARAMETER_BYTES
    bandwidth = device.memory_gb_per_s * 1e9
    return StepTime(seconds[True], seconds[False], moved / bandwidth, updated / bandwidth)


def _layer_seconds(layer: Layer, images: float, constants: Constants, device: Device, precision: Precision) -> float:
    """Return the seconds of a layer's passes: operations / attained speed, or bytes / bandwidth, if that is more."""
    speed = device.peak(precision, convolution=layer.is_convolution) * constants.product_share.value
    if layer.is_convolution:
        speed *= constants.convolution_share.value
    passes = training_passes(layer)
    values = images * (layer.input_values + layer.output_values) + layer.weights
    assert device.memory_gb_per_s is not None
    moving = passes * values * VALUE_BYTES[precision] / (device.memory_gb_per_s * 1e9)
    return max(images * passes * layer.operations / speed, moving)


def _elementwise_values(layer: Layer, compiled: bool) -> float:
    """Return the values that one image moves in activation, pooling and LRN of a layer."""
    passes = ELEMENTWISE_VALUES
    if layer.pooled_side and not compiled:
        passes += ELEMENTWISE_VALUES
    if layer.normalised:
        passes += LRN_VALUES[compiled]
    return passes * layer.output_values


def _estimate_cpu(
    loads: Sequence[LayerLoad], constants: Constants, device: Device, precision: Precision, compiled: bool, cores: int
) -> StepTime:
    """Return the time on a CPU: operations / attained speed, which was measured for complete steps, and LRN."""
    lrn = constants.cpu_lrn_compiled if compiled else constants.cpu_lrn_eager
    seconds = {True: 0.0, False: 0.0}
    normalised = 0.0
    for layer, images in loads:
        speed = device.peak(precision, convolution=layer.is_convolution) * cores
        seconds[layer.is_convolution] += images * training_passes(layer) * layer.operations / speed
        normalised += images * layer.output_values * layer.normalised
    return StepTime(seconds[True], seconds[False], normalised * lrn.value * 1e-9 / cores, 0.0)
