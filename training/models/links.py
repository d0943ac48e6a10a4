"""The links of a network: where a layer needs what other devices hold."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


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
