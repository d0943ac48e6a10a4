"""A network as it is trained: wrapped so that backward averages its gradients over the devices that hold the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.models import AlexNet


def wrap_ddp(module: nn.Module, device: torch.device, group: dist.ProcessGroup | None) -> nn.Module:
    """Return `module`, its gradients averaged over `group`; as it is where there is nobody or nothing to average."""
    if group is None or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, process_group=group, gradient_as_bucket_view=True)


class HybridDDP(nn.Module):
    """The hybrid: convolutions averaged over all devices, fully connected layers over those that hold the same units.

    Either is a DistributedDataParallel of its own, which sends the gradients that are ready while autograd computes
    the others: those of the fully connected layers travel during the backward of the convolutions.
    """

    def __init__(
        self,
        network: AlexNet,
        device: torch.device,
        everybody: dist.ProcessGroup | None,
        same_units: dist.ProcessGroup | None,
    ) -> None:
        super().__init__()
        self.network = network
        convolutions = _Stage(network.maps, network.convolutions())
        fully_connected = _Stage(network.classify, network.fully_connected())
        self.convolutions = wrap_ddp(convolutions, device, everybody)
        self.fully_connected = wrap_ddp(fully_connected, device, same_units)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N,num_classes) of this device's images N,3,H,W."""
        logits: Tensor = self.fully_connected(self.convolutions(images))
        return logits

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Keep the gradients of backward passes in here on this device; the next one outside averages their sum."""
        with ExitStack() as stack:
            for stage in (self.convolutions, self.fully_connected):
                if isinstance(stage, DistributedDataParallel):
                    stack.enter_context(stage.no_sync())
            yield


class _Stage(nn.Module):
    """Some layers of a network, and the part of its forward pass that they take."""

    def __init__(self, run: Callable[[Tensor], Tensor], layers: list[nn.Module]) -> None:
        super().__init__()
        self.run = run
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)
