"""The links that cross devices: those between the towers of 2012, and those of the hybrid of 2014.

All of it is public collectives of `torch.distributed` on plain tensors, so that it runs on gloo as on NCCL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.models import Links


class TowerLinks(Links):
    """Every layer is split by its output channels over the devices of `group`, which see the same images.

    The links stand where those of 2012 stood. All devices compute the same loss.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.width = self.conv_width = dist.get_world_size(group)

    def __deepcopy__(self, _memo: dict[int, Any]) -> TowerLinks:
        """Return itself: a copy of a network (an average of its weights) is on the same mesh."""
        return self

    def into_conv3(self, maps: Tensor) -> Tensor:
        """Stack the towers' channels."""
        return self.gather(maps)

    def into_fully_connected(self, maps: Tensor) -> Iterator[Tensor]:
        """Stack the towers' channels, all images at once."""
        yield self.gather(maps)

    def gather(self, units: Tensor) -> Tensor:
        """Stack the peers' channels; the backward sums what each peer's layer did with them."""
        return _Gather.apply(units, self.group, True)

    def gather_logits(self, logits: Tensor) -> Tensor:
        """Stack the peers' logits; each peer computes the same loss, so its own slice of the gradient is complete."""
        return _Gather.apply(logits, self.group, False)


class HybridLinks(TowerLinks):
    """Every device has the complete convolutions, for images of its own; fc6 to fc8 are split by their units.

    Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", scheme (c): the fully connected
    layers run over the group's images in parts, each made of an equal share of every device's images. All devices must
    bring the same number of images. Each takes the loss of its own.

    While one part is computed, the next is on its way; in backward, the gradient of one is on its way back while the
    part before it is computed. The smaller exchanges in between (units of fc6 and fc7, logits) are waited for. On NCCL
    transfer and computation are on streams of their own; on gloo they share the cores. What this gains on GPUs has not
    been measured.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self.conv_width = 1

    def into_conv3(self, maps: Tensor) -> Tensor:
        """Return the maps: this device has all channels of its images."""
        return maps

    def into_fully_connected(self, maps: Tensor) -> Iterator[Tensor]:
        """Yield the group's maps in parts, device after device; the next part is sent before one is given out."""
        ahead: tuple[Tensor, _Exchange] | None = None
        for own in maps.chunk(self.width):
            before, exchange = ahead, _Exchange(self.group)
            ahead = _Send.apply(own, exchange), exchange
            if before is not None:
                yield _Receive.apply(*before)
        assert ahead is not None, "a tensor has at least one chunk"
        yield _Receive.apply(*ahead)

    def gather_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of all classes for this device's images."""
        return _ToOwnImages.apply(logits, self.group)


class _Gather(torch.autograd.Function):
    """All-gather along the channel dimension (1); backward: reduce-scatter by sum, or the own slice.

    Collectives stack along dimension 0 of contiguous tensors, hence the channels go to the front and back again.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup, sum_gradients: bool) -> Tensor:
        ctx.group, ctx.sum_gradients = group, sum_gradients
        front = own.transpose(0, 1).contiguous()
        everything = front.new_empty((dist.get_world_size(group) * len(front), *front.shape[1:]))
        dist.all_gather_into_tensor(everything, front, group=group)
        memory_format = torch.channels_last if own.dim() == 4 else torch.contiguous_format
        return everything.transpose(0, 1).contiguous(memory_format=memory_format)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        front = gradient.transpose(0, 1).contiguous()
        parts = front.chunk(dist.get_world_size(ctx.group))
        if ctx.sum_gradients:
            own = torch.empty_like(parts[0])
            dist.reduce_scatter_tensor(own, front, group=ctx.group)
        else:
            own = parts[dist.get_rank(ctx.group)]
        return own.transpose(0, 1), None, None


class _Exchange:
    """The collective that `_Send` starts and `_Receive` waits for, and the reverse in backward."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.width = dist.get_world_size(group)
        self.work: Any = None
        self.own: Tensor | None = None
        """In backward, where the gradient of the own images arrives."""


class _Send(torch.autograd.Function):
    """Start to gather the images of all devices; backward: wait for the gradient that `_Receive` has sent on.

    The result of the forward is incomplete before `_Receive` has passed it on. Autograd runs backward in the reverse
    order of the forward, so the gradients travel while the part before this one is computed.

    The fully connected layers hold gradients of the mean over the group's images, the convolutions of that over the
    own images, as DistributedDataParallel expects of each.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        own = own.contiguous()
        everything = own.new_empty((exchange.width * len(own), *own.shape[1:]))
        exchange.work = dist.all_gather_into_tensor(everything, own, group=exchange.group, async_op=True)
        return everything

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[Tensor, None]:
        exchange: _Exchange = ctx.exchange
        exchange.work.wait()
        assert exchange.own is not None
        return exchange.own * exchange.width, None


class _Receive(torch.autograd.Function):
    """Wait for the images of all devices; backward: start to sum their gradients, each at the device it came from."""

    @staticmethod
    def forward(ctx: Any, everything: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.work.wait()
        return everything

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        exchange: _Exchange = ctx.exchange
        gradient = gradients[0].contiguous()
        exchange.own = gradient.new_empty((len(gradient) // exchange.width, *gradient.shape[1:]))
        exchange.work = dist.reduce_scatter_tensor(exchange.own, gradient, group=exchange.group, async_op=True)
        return gradient, None


class _ToOwnImages(torch.autograd.Function):
    """All-to-all: this device's classes of the group's images -> all classes of its own images; backward: back.

    Each device's loss is the mean over its own images: the gradient of the mean over the group's is 1/width of it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.width = group, dist.get_world_size(group)
        received = _all_to_all(logits, group)
        return received.unflatten(0, (ctx.width, -1)).transpose(0, 1).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        by_device = gradients[0].unflatten(1, (ctx.width, -1)).transpose(0, 1).flatten(0, 1)
        return _all_to_all(by_device, ctx.group) / ctx.width, None


def _all_to_all(blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send block i of dimension 0 to device i of the group; return the blocks that came, device after device."""
    blocks = blocks.contiguous()
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks, group=group)
    return received
