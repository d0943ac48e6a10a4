"""The layers of the networks: their operations, parameters and values, without building them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True)
class Layer:
    """A convolution, or with a side of 1 a fully connected layer."""

    name: str
    """conv1 to conv5 or fc6 to fc8."""
    inputs: int
    """Channels that come in, of all groups together."""
    outputs: int
    """Channels that go out, of all groups together."""
    kernel: int = 1
    """Side of the kernels in pixels."""
    input_side: int = 1
    """Side of the maps that come in, in pixels."""
    side: int = 1
    """Side of the maps that go out, before pooling."""
    groups: int = 1
    """Groups of channels that do not see each other."""
    pooled_side: int | None = None
    """Side of the maps after pooling; None: no pooling."""
    normalised: bool = False
    """LRN follows."""

    @property
    def is_convolution(self) -> bool:
        """True for conv1 to conv5."""
        return self.name.startswith("conv")

    @property
    def weights(self) -> int:
        """Number of weights, without biases."""
        return self.outputs * self.inputs // self.groups * self.kernel**2

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.weights + self.outputs

    @property
    def operations(self) -> int:
        """Multiplications and additions of the forward pass of one image."""
        return 2 * self.weights * self.side**2

    @property
    def input_values(self) -> int:
        """Values of one image that come in."""
        return self.inputs * self.input_side**2

    @property
    def output_values(self) -> int:
        """Values of one image that go out, before pooling."""
        return self.outputs * self.side**2

    @property
    def passed_values(self) -> int:
        """Values of one image that the next layer gets."""
        return self.outputs * (self.pooled_side or self.side) ** 2

    def shard(self, width: int) -> Layer:
        """Return what one of `width` devices holds of this layer: 1/width of its output channels.

        A layer in groups then sees only the channels of its own device (Krizhevsky 2012, figure 2).
        """
        inputs = self.inputs // width if self.groups > 1 else self.inputs
        return replace(self, inputs=inputs, outputs=self.outputs // width, groups=max(1, self.groups // width))


@dataclass(frozen=True)
class Network:
    """A network, layer by layer."""

    layers: tuple[Layer, ...]
    """conv1 to conv5 and fc6 to fc8."""
    image_size: int = 224
    """Side of the images in pixels."""
    towers: int = 1
    """Number of towers, and the largest number of devices that can share all layers."""
    hybrid: bool = False
    """Devices can split fc6 to fc8 and keep the convolutions complete (Krizhevsky 2014)."""

    @property
    def largest_width(self) -> int:
        """Largest number of devices over which fc6 to fc8 divide evenly."""
        return math.gcd(*(layer.outputs for layer in self.layers if not layer.is_convolution))


def training_passes(layer: Layer) -> int:
    """Return how many times the operations of the forward pass a training step takes.

    Forward, the gradient of the weights, and that of the inputs, which conv1 does not need.
    """
    return 2 if layer.name == "conv1" else 3


def _alexnet(
    channels: Sequence[int],
    *,
    towers: int = 1,
    hybrid: bool = False,
    lrn: bool = False,
    first_kernel: int = 11,
    image_size: int = 224,
    sides: Sequence[int] = (55, 27, 13, 6),
    hidden: Iterable[int] = (4096, 4096),
    classes: int = 1000,
) -> Network:
    """Return a network of the family; `sides`: of the maps of conv1, conv2, and conv3 to conv5, and of fc6's input."""
    first, second, third, last = sides
    kernels = (first_kernel, 5, 3, 3, 3)
    inputs = ((3, image_size), (channels[0], second), (channels[1], third), (channels[2], third), (channels[3], third))
    layers = [
        Layer(
            name=f"conv{number}",
            inputs=inputs[number - 1][0],
            outputs=channels[number - 1],
            kernel=kernels[number - 1],
            input_side=inputs[number - 1][1],
            side=(first, second, third, third, third)[number - 1],
            groups=towers if number in (2, 4, 5) else 1,
            pooled_side={1: second, 2: third, 5: last}.get(number),
            normalised=lrn and number <= 2,
        )
        for number in range(1, 6)
    ]
    units = (channels[4] * last**2, *hidden, classes)
    layers += [Layer(f"fc{number}", *pair) for number, pair in enumerate(pairwise(units), start=6)]
    return Network(tuple(layers), image_size, towers, hybrid)


NETWORKS = {
    "alexnet": _alexnet((96, 256, 384, 384, 256), towers=2, lrn=True),
    "alexnet-single": _alexnet((96, 256, 384, 384, 256), lrn=True),
    "alexnet-half": _alexnet((48, 128, 192, 192, 256), lrn=True),
    "alexnet-owt": _alexnet((64, 192, 384, 256, 256), hybrid=True),
    # The narrow network of recipe `tiny-imagenet`, for 20 classes.
    "tiny-imagenet": _alexnet(
        (48, 96, 128, 128, 128),
        towers=2,
        first_kernel=5,
        image_size=56,
        sides=(29, 14, 7, 3),
        hidden=(512, 512),
        classes=20,
    ),
}
"""By name; the same names and numbers as in `training.models`, which `tests/cluster/test_sizing.py` compares."""
