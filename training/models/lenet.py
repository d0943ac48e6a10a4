"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) in the form that is in use now: full connections, softmax output."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from errors import InputError
from training.models.contract import Links, NetworkArchitecture
from training.models.layers import Activation, Init, initialise, make_activation


@dataclass(frozen=True)
class LeNetArchitecture(NetworkArchitecture):
    """The switches of LeNet-5; the sizes are those of 1998, for three colours."""

    image_size: int = 32
    """Side of the square input in pixels; it fixes the number of fc3's inputs."""
    activation: Activation = "tanh"
    """After every layer but fc5."""
    init: Init = "torch"
    """Initial weights, see `initialise`."""

    @property
    def last_layer(self) -> str:
        """Name of the layer whose outputs are the logits."""
        return "fc5"

    def last_side(self) -> int:
        """Return the side in pixels of the maps that fc3 sees."""
        return ((self.image_size - 4) // 2 - 4) // 2

    def check(self, num_classes: int, width: int) -> None:  # noqa: ARG002 - any number of classes fits
        """Raise `InputError` for images that leave nothing to classify, or more than one device."""
        if self.last_side() < 1:
            raise InputError(f"crop {self.image_size} is too small for lenet5; it needs at least 16 pixels")
        if width > 1:
            raise InputError(f"parallel.model {width} is more than the 1 tower(s) of this network")


class LeNet5(nn.Module):
    """Convolutions of 6 and 16 maps, 2x2 average pooling, 120 and 84 units; images N,3,H,H -> N,num_classes logits."""

    def __init__(self, architecture: LeNetArchitecture, num_classes: int, links: Links) -> None:
        super().__init__()
        architecture.check(num_classes, links.width)
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc3 = nn.Linear(16 * architecture.last_side() ** 2, 120)
        self.fc4 = nn.Linear(120, 84)
        self.fc5 = nn.Linear(84, num_classes)
        self.act1, self.act2, self.act3, self.act4 = (
            make_activation(architecture.activation, channels) for channels in (6, 16, 120, 84)
        )
        for name in ("conv1", "conv2", "fc3", "fc4", "fc5"):
            initialise(getattr(self, name), name, architecture.init, is_last=name == architecture.last_layer)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N,num_classes) of images N,3,H,W."""
        x = F.avg_pool2d(self.act1(self.conv1(images)), 2)
        x = F.avg_pool2d(self.act2(self.conv2(x)), 2)
        x = self.act4(self.fc4(self.act3(self.fc3(x.flatten(1)))))
        logits: Tensor = self.fc5(x)
        return logits
