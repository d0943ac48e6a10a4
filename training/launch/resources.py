"""The devices and cores that a training gets from the cluster, and the checks before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from errors import InputError
from preprocess.manifest import read_manifest
from training.config import Config, Parallel, flatten
from training.models import make_network
from training.optim.optimizer import check_layers


@dataclass(frozen=True)
class Resources:
    """The mesh of workers that a training runs on: one device per worker."""

    device: Literal["cpu", "cuda"]
    widths: tuple[int, ...]
    """Sizes of the `data` axis that the training may have, ascending; one, unless it is elastic."""
    model: int
    """Size of the `model` axis."""
    cpus_per_worker: int

    @property
    def num_workers(self) -> int | tuple[int, int]:
        """Number of workers, or the fewest and the most of an elastic training, as Ray Train takes it."""
        least, most = self.widths[0] * self.model, self.widths[-1] * self.model
        return least if least == most else (least, most)

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources of a worker, as Ray counts them."""
        return {"CPU": self.cpus_per_worker, **({"GPU": 1} if self.device == "cuda" else {})}

    def params(self, config: Config) -> dict[str, Any]:
        """Return the flattened configuration with these resources filled in."""
        data = config.parallel.data if config.parallel.is_elastic else self.widths[0]
        parallel = Parallel(data, self.model, self.cpus_per_worker)
        return flatten(replace(config, device=self.device, parallel=parallel))


def check_data_and_network(config: Config) -> None:
    """Raise `InputError` unless the data set has enough samples of the right size for the network and the batch."""
    manifest = read_manifest(config.data)
    if manifest.short_side != config.short_side:
        raise InputError(
            f"{config.data} has a short side of {manifest.short_side} pixels; "
            f"recipe {config.recipe} is for {config.short_side}; use shards built with --short-side {config.short_side}"
        )
    if config.optimizer.schedule == "plateau" and not manifest.samples("val"):
        raise InputError(
            f"optimizer.schedule is 'plateau': it goes by the validation error, and {config.data} has no val samples; "
            "use another schedule, or build the shards with --val-fraction 0.1"
        )
    samples = manifest.samples("train")
    if not samples:
        raise InputError(f"data is {config.data}: it has no train samples; use it to evaluate, and another to train")
    if samples < config.batch_size:
        raise InputError(
            f"batch_size {config.batch_size} is more than the {samples} train samples of {config.data}; "
            f"use at most {samples}"
        )
    config.architecture().check(len(manifest.classes), config.parallel.model)
    with torch.device("meta"):  # only names: no memory, no random numbers
        named = make_network(config.architecture(), len(manifest.classes))
    check_layers(named, config.optimizer, config.epochs)


def resolve_resources(config: Config, nodes: list[dict[str, float]], *, may_grow: bool = False) -> Resources:
    """Fill in `device` and `parallel`, and check that the cluster can run it.

    Args:
        config: as requested.
        nodes: resources of each node, such as `CPU` and `GPU`.
        may_grow: nodes may join the cluster; a device and a number of workers that are named are then waited for.

    Raises:
        InputError: too few devices or cores, no node with room for the peers of the `model` axis, or a batch that the
            devices cannot divide.
    """
    gpus, cpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    device = config.device if config.device != "auto" else ("cuda" if gpus else "cpu")
    on_gpus, model = device == "cuda", config.parallel.model
    default = max(1, (gpus if on_gpus else 2) // model)
    least, most = config.parallel.data_range or (default, default)
    may_grow = may_grow and config.device != "auto" and config.parallel.data is not None
    if least * model > (gpus if on_gpus else cpus) and not may_grow:
        raise InputError(
            f"parallel.data {least} x parallel.model {model} needs {least * model} {device} workers; "
            f"the cluster has {cpus} CPU cores and {gpus} GPUs; "
            + ("use --device cpu, or auto" if on_gpus and not gpus else "use fewer, or a larger cluster")
        )
    widths = _widths(config, least, most)
    workers = widths[0] * model
    threads = config.parallel.cpus_per_worker or max(1, cpus // ((on_gpus and gpus) or widths[-1] * model))
    resources = Resources("cuda" if on_gpus else "cpu", widths, model, threads)
    if may_grow:
        return resources
    if threads * workers > cpus:
        raise InputError(
            f"parallel.cpus_per_worker {threads} for {workers} workers needs {threads * workers} cores; "
            f"the cluster has {cpus}"
        )
    _check_peers_fit(resources, nodes)
    return resources


def _widths(config: Config, least: int, most: int) -> tuple[int, ...]:
    """Return the sizes of the `data` axis in this range that divide the batch."""
    model = config.parallel.model
    hybrid = model > 1 and config.architecture().hybrid
    unit = model if hybrid else 1
    widths = tuple(data for data in range(least, most + 1) if config.batch_size % (data * unit) == 0)
    if not widths:
        data = config.parallel.data or least
        of = f"parallel.data {data} x parallel.model {model} devices" if hybrid else f"parallel.data {data} replicas"
        raise InputError(
            f"batch_size {config.batch_size} cannot be divided among {of}; use a multiple of {least * unit}"
        )
    return widths


def _check_peers_fit(resources: Resources, nodes: list[dict[str, float]]) -> None:
    workers_per_node = [int(node.get("CPU", 0) // resources.cpus_per_worker) for node in nodes]
    if resources.device == "cuda":
        gpus_per_node = [int(node.get("GPU", 0)) for node in nodes]
        workers_per_node = [min(pair) for pair in zip(workers_per_node, gpus_per_node, strict=True)]
    groups = sum(workers // resources.model for workers in workers_per_node)
    if groups < resources.widths[0]:
        raise InputError(
            f"parallel.cpus_per_worker {resources.cpus_per_worker}: the nodes have room for {groups} groups of "
            f"parallel.model {resources.model} {resources.device} worker(s) on one node, and parallel.data asks for "
            f"{resources.widths[0]}"
        )
