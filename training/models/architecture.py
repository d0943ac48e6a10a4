"""The numbers and switches of one network of the AlexNet family, its sizes and its checks, without building it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from errors import InputError, check_count, check_finite, check_fraction
from training.models.contract import NetworkArchitecture
from training.models.layers import Activation, DropoutForm, Init

LRN_ALPHA = {"paper": 1e-4, "code-2012": 2e-5}
"""Coefficient of the plain sum of squares: the paper's formula, and run 145, whose code divided by the size."""
Lrn = Literal["off", "paper", "code-2012"]
Pooling = Literal["overlapping", "disjoint"]
Order = Literal["act-lrn-pool", "act-pool-lrn", "lrn-act-pool", "lrn-pool-act", "pool-act-lrn", "pool-lrn-act"]


@dataclass(frozen=True)
class Architecture(NetworkArchitecture):
    """One network of the family; the defaults are those of the paper of 2012, but for the form of dropout."""

    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    """Output channels of conv1 to conv5, both towers together."""
    hidden: tuple[int, int] | tuple[()] = (4096, 4096)
    """Units of fc6 and fc7, both towers together; (): there are none, fc8 sees conv5's maps."""
    towers: int = 2
    """1: every convolution sees all channels (`alexnet-single`)."""
    hybrid: bool = False
    """Any number of devices split only fc6 to fc8; each computes the convolutions for its own images."""
    first_kernel: int = 11
    """Side of conv1's kernels in pixels."""
    first_stride: int = 4
    """Stride of conv1 in pixels."""
    first_padding: int | Literal["same"] | None = None
    """Zeros around conv1's input, its output's side rounded down. `same`: TensorFlow's. None: nothing, or half the
    kernel at strides of 1 and 2, and its output's side rounded up as in the code of 2012."""
    rounding: Literal["up", "down"] = "up"
    """Rounding of the pooling's output side: up in 2012 and PaddlePaddle, down in torchvision and TensorFlow."""
    image_size: int = 224
    """Side of the square input in pixels; it fixes the number of fc6's inputs unless `map_side` does."""
    map_side: int | None = None
    """Side of the maps that fc6 sees, for any input size: averaged to it, or with `fully_convolutional` the side of
    fc6's kernels."""
    fully_convolutional: bool = False
    """fc6 to fc8 are convolutions: larger images give a map of logits (`AlexNet.logit_map`) and their mean."""
    names: Literal["layers", "torchvision"] = "layers"
    """Parameters are named conv1 .. fc8, or features.N and classifier.N as in torchvision."""
    lrn: Lrn = "paper"
    """Response normalisation in stages 1 and 2, and whose alpha."""
    lrn_alpha: float | None = None
    """Coefficient of the plain sum of squares, in place of the one that `lrn` names."""
    lrn_k: float = 2.0
    """Offset of the denominator."""
    lrn_size: int = 5
    """Channels in the window; odd."""
    lrn_beta: float = 0.75
    """Exponent of the denominator."""
    order1: Order = "act-lrn-pool"
    """Operations after conv1. Run 145 of the released code: lrn-pool-act."""
    order2: Order = "act-lrn-pool"
    """Operations after conv2."""
    spatial_norm: bool = False
    """Run 145's normalisation over 5x5 pixels of the same map, after stage 2's LRN; the paper has none."""
    pooling: Pooling = "overlapping"
    """3x3 every 2 pixels; or 2x2, with 1 pixel less padding in conv2 and conv5 so that 6x6 maps remain (run 147)."""
    activation: Activation = "relu"
    """After every layer but fc8."""
    dropout: float = 0.5
    """Probability of zeroing a unit in training."""
    dropout_form: DropoutForm = "inverted"
    """`inverted`: scaled in training; `2012`: scaled in evaluation."""
    dropout_place: Literal["outputs", "inputs"] = "outputs"
    """Of fc6 and fc7: their outputs as in 2012, or their inputs as in torchvision."""
    init: Init = "paper"
    """Initial weights, see `initialise`."""

    def __post_init__(self) -> None:
        for name in ("first_kernel", "first_stride"):
            check_count(f"network.{name}", getattr(self, name), 1)
        check_fraction("network.dropout", self.dropout)
        for name in ("lrn_alpha", "lrn_k", "lrn_beta"):
            if (value := getattr(self, name)) is not None:
                check_finite(f"network.{name}", value, above_zero=True)
        if self.lrn_size < 1 or self.lrn_size % 2 == 0:
            raise InputError(f"network.lrn_size is {self.lrn_size}; use an odd number from 1")

    @property
    def first_layer(self) -> str:
        """Name of the layer that sees the image."""
        return "conv1" if self.names == "layers" else "features.0"

    @property
    def last_layer(self) -> str:
        """Name of the layer whose outputs are the logits."""
        return "fc8" if self.names == "layers" else "classifier.6"

    @property
    def pool_size(self) -> int:
        """Side of a pooling's window in pixels; its stride is 2."""
        return 3 if self.pooling == "overlapping" else 2

    def conv_padding(self, layer: Literal["conv2", "conv5"]) -> int:
        """Return the zeros around the input of the layer: half its kernel, and 1 less where pooling is disjoint."""
        return {"conv2": 2, "conv5": 1}[layer] - (self.pooling == "disjoint")

    def first_margins(self, side: int) -> tuple[int, int]:
        """Return the zeros before and after an image's `side` pixels so that conv1 needs no other padding."""
        reach = self.first_kernel - self.first_stride
        if self.first_padding == "same":
            total = max(0, -(-side // self.first_stride) * self.first_stride + reach - side)
            return total // 2, total - total // 2
        if self.first_padding is not None:
            return self.first_padding, self.first_padding
        # 2012 padded nothing but the last stride; a stride below half the kernel would shrink a small image away.
        padding = self.first_kernel // 2 if self.first_stride <= 2 else 0
        # The released code rounds the output size up and takes pixels outside the image as 0: 224 pixels give
        # 55 outputs. The same as zeros at the right and the bottom.
        return padding, padding + -(side + 2 * padding - self.first_kernel) % self.first_stride

    def sides(self) -> Iterator[tuple[str, int]]:
        """Yield (layer, side of its maps in pixels) for images of `image_size`; a side below 1 is none."""
        side = self.image_size
        side = 1 + (side + sum(self.first_margins(side)) - self.first_kernel) // self.first_stride
        yield "conv1", side
        side = self._pooled(side)
        yield "pooling 1", side
        side += 2 * self.conv_padding("conv2") - 4
        yield "conv2", side
        side = self._pooled(side)
        yield "pooling 2", side
        side += 2 * self.conv_padding("conv5") - 2
        yield "conv5", side
        yield "pooling 5", self._pooled(side)

    def last_side(self) -> int:
        """Return the side of the maps that the fully connected part sees."""
        return self.map_side or list(self.sides())[-1][1]

    def _pooled(self, side: int) -> int:
        size = self.pool_size
        if self.rounding == "down":
            return 1 + (side - size) // 2
        return 1 + -(-(side - min(size, side)) // 2)

    def check(self, num_classes: int, width: int) -> None:
        """Raise `InputError` unless images leave something to classify and `width` devices can share the layers."""
        if self.image_size < self.first_kernel:
            raise InputError(f"crop {self.image_size} is smaller than conv1's kernel of {self.first_kernel} pixels")
        for layer, side in self.sides():
            if side < 1:
                raise InputError(
                    f"crop {self.image_size} is too small for this network: nothing is left of it at {layer}"
                )
        if self.fully_convolutional and self.map_side is not None and side < self.map_side:
            raise InputError(
                f"crop {self.image_size} leaves maps of {side} pixels; fc6's kernels need {self.map_side} of them"
            )
        if width > self.towers and not self.hybrid:
            raise InputError(
                f"parallel.model {width} is more than the {self.towers} tower(s) of this network: "
                "the response normalisation of one tower would cross devices"
            )
        if any(count % self.towers for count in self.channels):
            raise InputError(f"channels {self.channels} do not all divide by {self.towers}, the number of towers")
        for units in (*self.hidden, num_classes):
            if units % width:
                what = "classes" if units == num_classes else "units of fc6 and fc7"
                raise InputError(
                    f"parallel.model {width} does not divide the {units} {what}; use divisors of "
                    f"{math.gcd(*self.hidden, num_classes)}"
                )
