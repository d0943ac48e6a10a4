"""Who does what: the `data` x `model` mesh, and the links that carry channels between its devices.

The towers are split as in 2012: every layer by its output channels over the `model` axis. Parameters are plain local
tensors, so DistributedDataParallel over the `data` axis works as ever, and because every parameter is split along
dimension 0, "stack along dimension 0" turns the shards into the single-device state and `chunk` turns it back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from preprocess.manifest import InputError
from training.models.links import Links


@dataclass(frozen=True)
class Layout:
    """This process's place on the mesh; the groups are None on an axis of size 1."""

    device: torch.device
    data_rank: int = 0
    data_size: int = 1
    model_rank: int = 0
    model_size: int = 1
    data_group: dist.ProcessGroup | None = None
    model_group: dist.ProcessGroup | None = None

    @property
    def global_rank(self) -> int:
        """Rank among all processes: peers on the `model` axis are adjacent."""
        return self.data_rank * self.model_size + self.model_rank

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that logs and writes."""
        return self.global_rank == 0

    def links(self) -> Links:
        """Return what connects this device's part of the network with its peers'."""
        return Links() if self.model_group is None else MeshLinks(self.model_group)

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return `model`, with gradients averaged over the `data` axis in backward."""
        if self.data_group is None:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=devices, process_group=self.data_group, gradient_as_bucket_view=True
        )

    def sum_over_data(self, values: Tensor) -> Tensor:
        """Return `values` summed over the `data` axis, in place."""
        if self.data_group is not None:
            dist.all_reduce(values, group=self.data_group)
        return values


def make_layout(device: torch.device, data: int, model: int) -> Layout:
    """Lay the processes of the default group out as a `data` x `model` mesh; model peers have adjacent ranks.

    Raises:
        RuntimeError: peers on the `model` axis sit on different nodes, or the group has another size.
    """
    if data * model == 1:
        return Layout(device)
    if dist.get_world_size() != data * model:
        raise RuntimeError(f"{dist.get_world_size()} processes cannot form a {data} x {model} mesh")
    mesh = init_device_mesh(device.type, (data, model), mesh_dim_names=("data", "model"))
    layout = Layout(
        device=device,
        data_rank=mesh.get_local_rank("data"),
        data_size=data,
        model_rank=mesh.get_local_rank("model"),
        model_size=model,
        data_group=mesh.get_group("data") if data > 1 else None,
        model_group=mesh.get_group("model") if model > 1 else None,
    )
    _check_peers_share_a_node(layout)
    return layout


def _check_peers_share_a_node(layout: Layout) -> None:
    # The towers exchange activations in every layer: over a network between nodes that is a mistake of placement.
    if layout.model_group is None:
        return
    nodes: list[Any] = [None] * layout.model_size
    dist.all_gather_object(nodes, (dist.get_rank(), os.uname().nodename), group=layout.model_group)
    if len({node for _, node in nodes}) > 1:
        places = ", ".join(f"rank {rank} on {node}" for rank, node in nodes)
        raise RuntimeError(f"peers on the model axis must share a node, but {places}")


class MeshLinks(Links):
    """The links of a network whose channels are spread over the devices of `group`."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.width = dist.get_world_size(group)

    def __deepcopy__(self, _memo: dict[int, Any]) -> MeshLinks:
        """Return itself: a copy of a network (an average of its weights) is on the same mesh."""
        return self

    def gather(self, channels: Tensor) -> Tensor:
        """Stack the peers' channels; the backward sums what each peer's layer did with them."""
        return _Gather.apply(channels, self.group, True)

    def gather_logits(self, logits: Tensor) -> Tensor:
        """Stack the peers' logits; each peer computes the same loss, so its own slice of the gradient is whole."""
        return _Gather.apply(logits, self.group, False)


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


def take_shard(full: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return this device's part of single-device tensors: its chunk of dimension 0 of each.

    Raises:
        InputError: a tensor does not divide by the size of the `model` axis.
    """
    for name, tensor in full.items():
        if tensor.shape[0] % layout.model_size:
            raise InputError(f"{name} of shape {tuple(tensor.shape)} cannot be split over {layout.model_size}")
    return {name: tensor.chunk(layout.model_size)[layout.model_rank] for name, tensor in full.items()}


def gather_full(shard: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return the single-device tensors on the CPU; all peers on the `model` axis must call it together."""
    return {name: _stack(tensor.detach(), layout).cpu() for name, tensor in shard.items()}


def _stack(own: Tensor, layout: Layout) -> Tensor:
    if layout.model_group is None:
        return own
    full = own.new_empty((layout.model_size * len(own), *own.shape[1:]))
    dist.all_gather_into_tensor(full, own.contiguous(), group=layout.model_group)
    return full
