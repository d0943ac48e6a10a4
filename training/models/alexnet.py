"""AlexNet in two towers, one or many devices wide (Krizhevsky, Sutskever, Hinton 2012, section 3.5).

One definition serves the single device and the parallel forms. With the towers, every layer is split on its output
channels over the `model` axis: a grouped convolution finds its inputs on its own device, and a link stands exactly
where those of 2012 stood (into conv3, fc6, fc7 and fc8). In the hybrid (Krizhevsky 2014) every device has the
complete convolutions, and fc6 to fc8 are split in the same way. On one device the links do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.architecture import LRN_ALPHA, Architecture
from training.models.contract import Links
from training.models.convolution import Conv2d
from training.models.layers import initialise, make_activation, make_dropout
from training.models.lrn import LocalResponseNorm, SpatialResponseNorm

_CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_TORCHVISION = {
    **dict(zip(_CONVOLUTIONS, ("features.0", "features.3", "features.6", "features.8", "features.10"), strict=True)),
    **{"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
    **{"act1": "features.1", "act2": "features.4", "act3": "features.7", "act4": "features.9", "act5": "features.11"},
    **{"act6": "classifier.2", "act7": "classifier.5"},
}


class AlexNet(nn.Module):
    """Five convolutions, three fully connected layers; N,3,image_size,image_size float -> N,num_classes logits.

    Parameters are named conv1 to conv5 and fc6 to fc8, or as in torchvision. With `links.width` devices this module
    holds its device's 1/width of every layer's output channels, or in the hybrid only of fc6 to fc8's; of a parameter
    that is split, those of all devices stacked along dimension 0 are the single device's.

    Raises:
        InputError: a width or the class count does not divide, more devices than the network can be shared by, or the
            image is too small.
    """

    def __init__(self, architecture: Architecture, num_classes: int, links: Links) -> None:
        super().__init__()
        architecture.check(num_classes, links.width)
        assert architecture.towers % links.conv_width == 0, "these links cut through a tower"
        self.architecture = architecture
        self.num_classes = num_classes
        self.links = links
        self._add_convolutions()
        self._add_fully_connected()
        width = links.conv_width
        groups = architecture.towers // width
        self.norm1, self.norm2 = (self._norm(channels // width, groups) for channels in architecture.channels[:2])
        self.spatial_norm = SpatialResponseNorm() if architecture.spatial_norm else nn.Identity()
        self.dropout = make_dropout(architecture.dropout_form, architecture.dropout)
        for name in (*_CONVOLUTIONS, *self._fc_names):
            layer = self.layer(name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            initialise(layer, name, architecture.init, is_last=name == self._fc_names[-1])

    def layer(self, name: str) -> nn.Module:
        """Return the layer `name`: conv1 to conv5, fc6 to fc8, or the activation act1 to act7 after one of them."""
        folder, _, key = self._path(name).rpartition(".")
        module = getattr(self, folder)[key] if folder else getattr(self, key)
        assert isinstance(module, nn.Module)
        return module

    def convolutions(self) -> list[nn.Module]:
        """Return the layers with parameters that `maps` runs through."""
        return [self.layer(f"{kind}{number}") for kind in ("conv", "act") for number in range(1, 6)]

    def fully_connected(self) -> list[nn.Module]:
        """Return the layers with parameters that `classify` runs through."""
        hidden = range(6, 6 + len(self.architecture.hidden))
        return [*(self.layer(name) for name in self._fc_names), *(self.layer(f"act{number}") for number in hidden)]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N,num_classes) of images N,3,H,W; of a fully convolutional network, its map's mean."""
        logits = self.classify(self.maps(images))
        return logits.mean((2, 3)) if self.architecture.fully_convolutional else logits

    def logit_map(self, images: Tensor) -> Tensor:
        """Return the map of logits N,num_classes,h,w of larger images N,3,H,W, one for each position of fc6's kernels.

        Each is the result of fc6 to fc8 for that window of conv5's maps: neighbours lie 32 pixels apart in the image.
        A crop of the image differs at its rim, where it sees the convolutions' zero padding.
        """
        assert self.architecture.fully_convolutional, "only a fully convolutional network has a map of logits"
        return self.classify(self.maps(images))

    def maps(self, images: Tensor) -> Tensor:
        """Return conv5's pooled maps N,C,h,w of images N,3,H,W: all that the convolutions do."""
        a = self.architecture
        x = self._stage(self.layer("conv1")(self._with_margins(images)), 1, a.order1)
        x = self._stage(self.layer("conv2")(x), 2, a.order2)
        x = self.layer("act3")(self.layer("conv3")(self.links.into_conv3(x)))
        x = self.layer("act4")(self.layer("conv4")(x))
        return self._pool(self.layer("act5")(self.layer("conv5")(x)))

    def classify(self, maps: Tensor) -> Tensor:
        """Return the logits of the result of `maps`: all that the fully connected layers do."""
        a = self.architecture
        if a.map_side and not a.fully_convolutional:
            maps = F.adaptive_avg_pool2d(maps, a.map_side)
        if a.hidden and a.dropout_place == "inputs":
            maps = self.dropout(maps)
        return torch.cat([self._fully_connected(part) for part in self.links.into_fully_connected(maps)])

    def _fully_connected(self, x: Tensor) -> Tensor:
        last = 5 + len(self.architecture.hidden)
        for number in range(6, last + 1):
            x = self.layer(f"act{number}")(self.layer(f"fc{number}")(self._inputs(x)))
            if number < last or self.architecture.dropout_place == "outputs":  # fc6's outputs are fc7's inputs
                x = self.dropout(x)
            x = self.links.gather(x)
        return self.links.gather_logits(self.layer("fc8")(self._inputs(x)))

    def _stage(self, x: Tensor, number: int, order: str) -> Tensor:
        for step in order.split("-"):
            if step == "act":
                x = self.layer(f"act{number}")(x)
            elif step == "pool":
                x = self._pool(x)
            else:
                x = self.norm1(x) if number == 1 else self.spatial_norm(self.norm2(x))
        return x

    def _pool(self, x: Tensor) -> Tensor:
        a = self.architecture
        # A window that is larger than the maps is clipped at their edge, as in PaddlePaddle.
        size = min(a.pool_size, *x.shape[2:]) if a.rounding == "up" else a.pool_size
        return F.max_pool2d(x, size, stride=2, ceil_mode=a.rounding == "up")

    def _with_margins(self, images: Tensor) -> Tensor:
        """Pad with what conv1's own, even padding does not give."""
        own = self._even_padding()
        (top, bottom), (left, right) = (self.architecture.first_margins(side) for side in images.shape[2:])
        margins = (left - own, right - own, top - own, bottom - own)
        return F.pad(images, margins) if any(margins) else images

    def _even_padding(self) -> int:
        a = self.architecture
        return 0 if a.first_padding == "same" else a.first_margins(a.image_size)[0]

    def _inputs(self, x: Tensor) -> Tensor:
        return x if self.architecture.fully_convolutional else x.flatten(1)

    def _add_convolutions(self) -> None:
        a, width = self.architecture, self.links.conv_width
        c1, c2, c3, c4, c5 = (channels // width for channels in a.channels)
        groups = a.towers // width
        self._add("conv1", Conv2d(3, c1, a.first_kernel, stride=a.first_stride, padding=self._even_padding()))
        self._add("conv2", Conv2d(c1, c2, 5, padding=a.conv_padding("conv2"), groups=groups))
        self._add("conv3", Conv2d(a.channels[1], c3, 3, padding=1))
        self._add("conv4", Conv2d(c3, c4, 3, padding=1, groups=groups))
        self._add("conv5", Conv2d(c4, c5, 3, padding=a.conv_padding("conv5"), groups=groups))
        for number, channels in enumerate((c1, c2, c3, c4, c5), start=1):
            self._add(f"act{number}", make_activation(a.activation, channels))

    def _add_fully_connected(self) -> None:
        a, width = self.architecture, self.links.width
        inputs, side = a.channels[4], a.last_side()
        self._fc_names = (*("fc6", "fc7")[: len(a.hidden)], "fc8")
        for name, units in zip(self._fc_names, (*a.hidden, self.num_classes), strict=True):
            if a.fully_convolutional:
                self._add(name, nn.Conv2d(inputs, units // width, side))
            else:
                self._add(name, nn.Linear(inputs * side**2, units // width))
            inputs, side = units, 1
        for number, units in enumerate(a.hidden, start=6):
            self._add(f"act{number}", make_activation(a.activation, units // width))

    def _norm(self, channels: int, towers: int) -> nn.Module:
        a = self.architecture
        if a.lrn == "off":
            return nn.Identity()
        alpha = LRN_ALPHA[a.lrn] if a.lrn_alpha is None else a.lrn_alpha
        return LocalResponseNorm(channels, towers, alpha=alpha, k=a.lrn_k, size=a.lrn_size, beta=a.lrn_beta)

    def _add(self, name: str, module: nn.Module) -> None:
        folder, _, key = self._path(name).rpartition(".")
        if not folder:
            self.add_module(key, module)
            return
        if not hasattr(self, folder):
            self.add_module(folder, nn.ModuleDict())
        getattr(self, folder)[key] = module

    def _path(self, name: str) -> str:
        return name if self.architecture.names == "layers" else _TORCHVISION[name]


def to_fully_convolutional(state: Mapping[str, Tensor], side: int = 6) -> dict[str, Tensor]:
    """Return the state of `alexnet-single` for `alexnet-conv`, or of `alexnet-owt` for `alexnet-owt-conv`.

    The first matrix (units, channels * side²) becomes (units, channels, side, side), the others
    (units, inputs, 1, 1). All else is unchanged; tensors share their memory with those of `state`.
    """
    matrices = [name for name, tensor in state.items() if tensor.dim() == 2]
    kernels = {name: (side if name == matrices[0] else 1) for name in matrices}
    return {
        name: tensor.reshape(len(tensor), -1, kernels[name], kernels[name]) if name in kernels else tensor
        for name, tensor in state.items()
    }


def to_fully_connected(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_fully_convolutional`: fc6 to fc8 (`classifier.N` in torchvision's names) become matrices."""
    return {
        name: tensor.flatten(1) if tensor.dim() == 4 and name.startswith(("fc", "classifier")) else tensor
        for name, tensor in state.items()
    }
