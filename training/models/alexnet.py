"""AlexNet in two towers, one or many devices wide (Krizhevsky, Sutskever, Hinton 2012, section 3.5).

One definition serves the single device and the parallel form. Every layer is split on its output channels over the
`model` axis: a grouped convolution finds its inputs on its own device, and `links.gather` stands exactly where the
towers of 2012 were linked (into conv3, fc6, fc7 and fc8). On one device it does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from preprocess.manifest import InputError
from training.models.links import Links
from training.models.lrn import LocalResponseNorm

LRN_ALPHA = {"paper": 1e-4, "code-2012": 2e-5}
"""Coefficient of the plain sum of squares: the paper's formula, and run 145, whose code divided by the size."""


@dataclass(frozen=True)
class Architecture:
    """The numbers that make one network of the family; the defaults are those of 2012."""

    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    """Output channels of conv1 to conv5, both towers together."""
    hidden: tuple[int, int] = (4096, 4096)
    """Units of fc6 and fc7, both towers together."""
    towers: int = 2
    """1: every convolution sees all channels (`alexnet-single`)."""
    first_kernel: int = 11
    """Side of conv1's kernels in pixels."""
    first_stride: int = 4
    """Stride of conv1 in pixels."""
    image_size: int = 224
    """Side of the square input in pixels; it fixes the number of fc6's inputs."""
    lrn: Literal["off", "paper", "code-2012"] = "paper"
    """Response normalisation after conv1 and conv2, and whose alpha."""
    dropout: float = 0.5
    """Probability of zeroing a unit of fc6 and fc7 in training."""
    init: Literal["paper", "he"] = "paper"
    """`paper`: N(0, 0.01), biases 1 in conv2, conv4, conv5, fc6, fc7; `he`: N(0, 2 / fan-in), biases 0."""


NETWORKS: dict[str, Architecture] = {
    "alexnet": Architecture(),
    "alexnet-single": Architecture(towers=1),
    "alexnet-small": Architecture(
        channels=(48, 96, 128, 128, 128), hidden=(512, 512), first_kernel=5, first_stride=1, image_size=28
    ),
}


def build(name: str, num_classes: int, *, links: Links | None = None, **switches: object) -> AlexNet:
    """Return the network `name` for `num_classes` classes, its weights drawn from torch's global generator.

    Args:
        name: a key of `NETWORKS`.
        num_classes: number of outputs of fc8.
        links: what connects this device with those that hold the other channels; None: a single device.
        **switches: fields of `Architecture` to change.

    Raises:
        InputError: an unknown name, or widths that cannot be split over the devices.
    """
    return AlexNet(architecture(name, **switches), num_classes, links or Links())


def architecture(name: str, **switches: object) -> Architecture:
    """Return the numbers of the network `name` with some of them changed; `InputError` for an unknown name."""
    if name not in NETWORKS:
        raise InputError(f"network.name {name!r} is unknown; there are {', '.join(NETWORKS)}")
    return replace(NETWORKS[name], **switches)  # type: ignore[arg-type]


class AlexNet(nn.Module):
    """Five convolutions, three dense layers; N,3,image_size,image_size float -> N,num_classes logits.

    Parameters are named conv1 to conv5 and fc6 to fc8. With `links.width` devices this module holds its device's
    1/width of every layer's output channels; tensors of all devices, stacked along dimension 0, are the
    single-device state.

    Raises:
        InputError: a width or the class count does not divide, or more devices than towers.
    """

    def __init__(self, architecture: Architecture, num_classes: int, links: Links) -> None:
        super().__init__()
        check_division(architecture, num_classes, links.width)
        self.architecture = architecture
        self.num_classes = num_classes
        self.links = links
        a, width = architecture, links.width
        c1, c2, c3, c4, c5 = (channels // width for channels in a.channels)
        groups = a.towers // width
        all2, all5 = a.channels[1], a.channels[4]
        self.conv1 = nn.Conv2d(3, c1, a.first_kernel, stride=a.first_stride, padding=self._padding())
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=groups)
        self.conv3 = nn.Conv2d(all2, c3, 3, padding=1)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=groups)
        self.fc6 = nn.Linear(all5 * self._last_side() ** 2, a.hidden[0] // width)
        self.fc7 = nn.Linear(a.hidden[0], a.hidden[1] // width)
        self.fc8 = nn.Linear(a.hidden[1], num_classes // width)
        self.norm1, self.norm2 = self._norm(c1, groups), self._norm(c2, groups)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.dropout = nn.Dropout(a.dropout)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N,num_classes) of images N,3,H,W."""
        gather = self.links.gather
        x = self.pool(self.norm1(F.relu(self.conv1(self._fill_last_stride(images)))))
        x = self.pool(self.norm2(F.relu(self.conv2(x))))
        x = F.relu(self.conv3(gather(x)))
        x = F.relu(self.conv4(x))
        x = self.pool(F.relu(self.conv5(x)))
        x = self.dropout(F.relu(self.fc6(gather(x).flatten(1))))
        x = self.dropout(F.relu(self.fc7(gather(x))))
        return self.links.gather_logits(self.fc8(gather(x)))

    def _padding(self) -> int:
        # 2012 padded nothing but the last stride; a stride below half the kernel would shrink a small image away.
        a = self.architecture
        return a.first_kernel // 2 if a.first_stride <= 2 else 0

    def _fill_last_stride(self, images: Tensor) -> Tensor:
        # The released code rounds the output size up and takes pixels outside the image as 0: 224 pixels give
        # 55 outputs. The same as zeros at the right and the bottom.
        a = self.architecture
        missing = -(images.shape[-1] + 2 * self._padding() - a.first_kernel) % a.first_stride
        return F.pad(images, (0, missing, 0, missing)) if missing else images

    def _last_side(self) -> int:
        a = self.architecture
        side = 1 + -(-(a.image_size + 2 * self._padding() - a.first_kernel) // a.first_stride)
        for _ in range(3):
            side = 1 + -(-(side - 3) // 2)
        return side

    def _norm(self, channels: int, towers: int) -> nn.Module:
        lrn = self.architecture.lrn
        return nn.Identity() if lrn == "off" else LocalResponseNorm(channels, towers, alpha=LRN_ALPHA[lrn])

    def _initialise(self) -> None:
        for name, layer in self.named_children():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            assert layer.bias is not None
            if self.architecture.init == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            else:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, float(name in {"conv2", "conv4", "conv5", "fc6", "fc7"}))


def check_division(architecture: Architecture, num_classes: int, width: int) -> None:
    """Raise `InputError` unless every layer of the network can be split over `width` devices."""
    if architecture.image_size < architecture.first_kernel:
        raise InputError(
            f"crop {architecture.image_size} is smaller than conv1's kernel of {architecture.first_kernel} pixels"
        )
    if width > architecture.towers:
        raise InputError(
            f"parallel.model {width} is more than the {architecture.towers} tower(s) of this network: "
            "the response normalisation of one tower would cross devices"
        )
    sizes = {"channels": architecture.channels, "hidden": architecture.hidden, "classes": (num_classes,)}
    for what, values in sizes.items():
        for value in values:
            divisor = architecture.towers if what == "channels" else width
            if value % divisor:
                raise InputError(f"{what} {value} does not divide by {divisor}, the number of towers or devices")
