"""The contract between a training and a network: the network's architecture, and the links between its devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field
from typing import Any, ClassVar, Protocol

from torch import Tensor


class NetworkArchitecture(Protocol):
    """The numbers and switches of a network, a frozen dataclass.

    Those of its fields that `training.config.Network` has too are options, `--network.NAME`.

    A class that inherits from it is a network for one device, with a first layer `conv1` and a last layer `fc8`, until
    it says otherwise.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        ...

    @property
    def first_layer(self) -> str:
        """Name of the convolution that sees the image; the report shows its kernels."""
        return "conv1"

    @property
    def last_layer(self) -> str:
        """Name of the layer whose outputs are the logits, one for each class."""
        return "fc8"

    @property
    def towers(self) -> int:
        """Number of equal parts of the first layer's kernels that see none of each other's maps."""
        return 1

    @property
    def hybrid(self) -> bool:
        """Devices that share the network split only its fully connected layers (Krizhevsky 2014)."""
        return False

    def check(self, num_classes: int, width: int) -> None:
        """Raise `InputError` unless images leave something to classify and `width` devices can share the layers."""
        ...


class Links:
    """The links of a network that sits on one device: everything is at hand, nothing moves.

    `training.parallel.links` has the ones that cross devices. `width` is the number of devices that share the network,
    each with 1/width of the units of fc6 to fc8; of the convolutions each has 1/`conv_width` of the output channels.
    """

    width = 1
    conv_width = 1

    def into_conv3(self, maps: Tensor) -> Tensor:
        """Return all channels (dimension 1) of stage 2."""
        return maps

    def into_fully_connected(self, maps: Tensor) -> Iterator[Tensor]:
        """Yield all channels of conv5's pooled maps, for all images that fc6 to fc8 see, in one or more parts."""
        yield maps

    def gather(self, units: Tensor) -> Tensor:
        """Return all units (dimension 1) of a fully connected layer."""
        return units

    def gather_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of all classes, for this device's images of the part."""
        return logits
