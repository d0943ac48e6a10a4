"""The links between the towers: where a layer needs channels that another device holds."""

from __future__ import annotations

from torch import Tensor


class Links:
    """The links of a network that sits on one device: every channel is at hand, nothing moves.

    `training.parallel` has the ones that cross devices. `width` is the number of devices that share the network,
    each with 1/width of every layer's output channels.
    """

    width = 1

    def gather(self, channels: Tensor) -> Tensor:
        """Return all channels (dimension 1) of a layer whose outputs are split over the devices."""
        return channels

    def gather_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of all classes; from here on all devices compute the same loss."""
        return logits
