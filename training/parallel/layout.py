"""The `data` x `model` mesh, and the conversion between shards and the single-device state.

Towers are split as in 2012: every layer by its output channels over the `model` axis, whose devices see the same
images. In the hybrid of 2014 only the fully connected layers are split, and every device of the mesh has its own share
of the batch, so that no two devices decode the same image. Parameters are plain local tensors, so
DistributedDataParallel works unchanged over the devices that hold the same ones. A parameter is split along dimension
0 or not at all: stacking the shards along dimension 0 gives the single-device state, and `chunk` gives the shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from errors import InputError
from training.models import AlexNet, Links
from training.parallel.ddp import HybridDDP, wrap_ddp
from training.parallel.links import HybridLinks, TowerLinks

if TYPE_CHECKING:
    from pipeline.loader import Loader


@dataclass(frozen=True)
class Layout:
    """The coordinates of this process on the mesh; the group of an axis of size 1 is None."""

    device: torch.device
    data_rank: int = 0
    data_size: int = 1
    model_rank: int = 0
    model_size: int = 1
    mesh_group: dist.ProcessGroup | None = None
    """All processes of the mesh; None if there is only one."""
    data_group: dist.ProcessGroup | None = None
    model_group: dist.ProcessGroup | None = None
    hybrid: bool = False
    """Split only the fully connected layers over a `model` axis of more than one device."""

    @property
    def global_rank(self) -> int:
        """Rank among all processes: peers on the `model` axis are adjacent."""
        return self.data_rank * self.model_size + self.model_rank

    @property
    def num_processes(self) -> int:
        """Number of processes on the mesh."""
        return self.data_size * self.model_size

    @property
    def is_first(self) -> bool:
        """True on the process that logs and writes."""
        return self.global_rank == 0

    @property
    def batch_rank(self) -> int:
        """Rank among the shares of a batch: on the `data` axis, in the hybrid among all processes."""
        return self.global_rank if self.hybrid else self.data_rank

    @property
    def num_batch_ranks(self) -> int:
        """Number of shares of a batch."""
        return self.num_processes if self.hybrid else self.data_size

    @property
    def _batch_group(self) -> dist.ProcessGroup | None:
        return self.mesh_group if self.hybrid else self.data_group

    def links(self) -> Links:
        """Return the communication between this device's part of the network and its peers'."""
        if self.model_group is None:
            return Links()
        return HybridLinks(self.model_group) if self.hybrid else TowerLinks(self.model_group)

    def wrap_for_training(self, model: nn.Module, image_size: int) -> nn.Module:
        """Wrap `model` so that backward averages each gradient over the devices that hold the same parameter.

        It runs a forward and a backward pass, all processes together, and draws random numbers for dropout.
        """
        if self.hybrid:
            assert isinstance(model, AlexNet)
            wrapped: nn.Module = HybridDDP(model, self.device, self._batch_group, self.data_group)
        else:
            wrapped = wrap_ddp(model, self.device, self.data_group)
        if wrapped is not model:
            # DistributedDataParallel orders its buckets by the first backward pass. More than two devices would sum
            # the first step after a start in another order than the same step of a training that went on.
            wrapped(torch.zeros(self.model_size, 3, image_size, image_size, device=self.device)).sum().backward()
            model.zero_grad(set_to_none=True)
        return wrapped

    def sum_over_batch_ranks(self, values: Tensor) -> Tensor:
        """Sum `values` over all shares of a batch, in place, and return them."""
        if self._batch_group is not None:
            dist.all_reduce(values, group=self._batch_group)
        return values

    def max_of(self, number: int) -> int:
        """Return the highest `number` of all processes; all processes must call it together."""
        if self.mesh_group is None:
            return number
        numbers = torch.tensor(int(number), device=self.device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.mesh_group)
        return int(numbers)

    def gather_objects(self, own: Any) -> list[Any]:
        """Return what each process gives, by global rank; all processes must call it together."""
        if self.mesh_group is None:
            return [own]
        everything: list[Any] = [None] * self.num_processes
        dist.all_gather_object(everything, own, group=self.mesh_group)
        return everything

    def pad_to_equal_batches(
        self, batches: Loader, shape: tuple[int, int, int, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pad the batches so that all peers run the same number of forward passes.

        In the hybrid each device has its own images, and one may have fewer. There, zeros fill every batch up to
        `shape` (N,3,H,W), and a device that has run out of batches gets only zeros; labels are not padded.
        """
        if not self.hybrid:
            yield from batches
            return
        rounds = torch.tensor(len(batches), device=self.device)
        dist.all_reduce(rounds, dist.ReduceOp.MAX, group=self.model_group)
        empty = torch.zeros(0, *shape[1:], device=self.device), torch.zeros(0, dtype=torch.int64, device=self.device)
        for images, labels in chain(batches, repeat(empty, int(rounds) - len(batches))):
            missing = shape[0] - len(images)
            yield F.pad(images, (0,) * 7 + (missing,)), labels


def make_layout(
    device: torch.device, widths: Sequence[int], model: int, *, hybrid: bool, node: str | None = None
) -> Layout | None:
    """Arrange the processes of the default group as a `data` x `model` mesh; model peers have adjacent ranks.

    All processes must call it together. Those that the mesh has no room for get None.

    Args:
        device: the device of this process.
        widths: sizes of the `data` axis to choose from, ascending: the largest one with enough processes is taken.
        model: size of the `model` axis.
        hybrid: how devices share a network, see `Architecture.hybrid`.
        node: name of the machine of this process, different on each; None: its host name.

    Raises:
        RuntimeError: there are too few processes on the same nodes.
    """
    ranks = _ranks_with_peers(model, node or os.uname().nodename)
    data = max((width for width in widths if width * model <= len(ranks)), default=0)
    if data == 0:
        raise RuntimeError(
            f"peers on the model axis must share a node, and the {_world_size()} processes have room for "
            f"{len(ranks) // model} groups of {model}; {widths[0]} are needed"
        )
    ranks = ranks[: data * model]
    in_mesh = not dist.is_initialized() or dist.get_rank() in ranks
    if len(ranks) == 1:
        return Layout(device) if in_mesh else None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = DeviceMesh(device.type, torch.tensor(ranks).view(data, model), mesh_dim_names=("data", "model"))
    mesh_group = dist.group.WORLD if len(ranks) == dist.get_world_size() else dist.new_group(ranks)
    if not in_mesh:
        return None
    assert isinstance(mesh_group, dist.ProcessGroup)
    return Layout(
        device=device,
        data_rank=mesh.get_local_rank("data"),
        data_size=data,
        model_rank=mesh.get_local_rank("model"),
        model_size=model,
        mesh_group=mesh_group,
        data_group=mesh.get_group("data") if data > 1 else None,
        model_group=mesh.get_group("model") if model > 1 else None,
        hybrid=hybrid and model > 1,
    )


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _ranks_with_peers(model: int, node: str) -> list[int]:
    """Return the ranks, ascending, that form groups of `model` processes of one node."""
    # Peers exchange activations in every step, which is too slow over a network between nodes.
    if model == 1:
        return list(range(_world_size()))
    nodes: list[Any] = [None] * _world_size()
    dist.all_gather_object(nodes, node)
    ranks: list[int] = []
    for _, members in groupby(range(len(nodes)), key=nodes.__getitem__):
        on_node = list(members)
        ranks += on_node[: len(on_node) // model * model]
    return ranks


def take_shard(full: Mapping[str, Tensor], network: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Return this device's shard of single-device tensors: its chunk of dimension 0 where `network` is split.

    `full` holds tensors by the name of the parameter that each belongs to; `network` is this device's part of the
    network, or a copy of it.

    Raises:
        InputError: a tensor does not divide by the size of the `model` axis.
    """
    split = _split_parameters(network, layout)
    for name, tensor in full.items():
        if name in split and tensor.dim() and tensor.shape[0] % layout.model_size:
            raise InputError(f"{name} of shape {tuple(tensor.shape)} cannot be split over {layout.model_size}")
    return {
        name: tensor.chunk(layout.model_size)[layout.model_rank] if name in split and tensor.dim() else tensor
        for name, tensor in full.items()
    }


def gather_full(shard: Mapping[str, Tensor], network: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Undo `take_shard`: return copies on the CPU; all peers on the `model` axis must call it together."""
    split = _split_parameters(network, layout)
    return {
        name: (_stack(tensor.detach(), layout) if name in split and tensor.dim() else tensor.detach()).to(
            "cpu", copy=True
        )
        for name, tensor in shard.items()
    }


def _split_parameters(network: nn.Module, layout: Layout) -> set[str]:
    """Return the names of the parameters that are split over the `model` axis."""
    if layout.model_group is None:
        return set()
    assert isinstance(network, AlexNet)
    unsplit = (
        {parameter for layer in network.convolutions() for parameter in layer.parameters()} if layout.hybrid else ()
    )
    return {name for name, parameter in network.named_parameters() if parameter not in unsplit}


def _stack(own: Tensor, layout: Layout) -> Tensor:
    full = own.new_empty((layout.model_size * len(own), *own.shape[1:]))
    dist.all_gather_into_tensor(full, own.contiguous(), group=layout.model_group)
    return full
