"""The estimate of a training: a job's step, decoding, storage, exchange, memory, time and cost in one layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.sizing.constants import Constants, Device, LayoutName, Precision
from cluster.sizing.exchange import Ring, make_ring
from cluster.sizing.networks import Network
from cluster.sizing.step import PARAMETER_BYTES, VALUE_BYTES, LayerLoad, StepTime, estimate_step
from errors import InputError, check_count, check_finite

BATCHES_IN_MEMORY = 3
"""Batches of images on the device: the one in the step, and two that the loader has ready."""


@dataclass(frozen=True)
class Job:
    """A training and the machines that it runs on.

    Raises:
        InputError: numbers that cannot be, or that do not fit each other.
    """

    network: Network
    device: Device
    gpus: int
    """All GPUs together; of a CPU: 1 worker."""
    batch: int
    """Images in a step, over all GPUs."""
    precision: Precision
    compiled: bool
    """`torch.compile` and fused optimizer, or eager operations."""
    nodes: int = 1
    network_gbps: float | None = None
    """Network of a node, in 10^9 bits/s."""
    cores: int | None = None
    """CPU cores of a node; None: unknown, decoding does not limit."""
    decoded_per_core: float | None = None
    """Images/s that a core decodes; None: those of ImageNet."""

    def __post_init__(self) -> None:
        for name in ("gpus", "batch", "nodes"):
            check_count(f"--{name}", getattr(self, name), 1)
        if self.cores is not None:
            check_count("--cores", self.cores, 1)
        if self.network_gbps is not None:
            check_finite("--network-gbps", self.network_gbps, above_zero=True)
        if self.device.kind == "cpu" and self.gpus > 1:
            raise InputError(f"--gpus is {self.gpus}: the exchange between CPUs has not been measured; use 1")
        if self.gpus % self.nodes:
            raise InputError(f"--gpus is {self.gpus}: it does not divide by --nodes {self.nodes}; use a multiple of it")
        if self.batch % self.gpus:
            raise InputError(f"--batch is {self.batch}: it does not divide by --gpus {self.gpus}; use a multiple of it")
        if self.nodes > 1 and self.network_gbps is None:
            raise InputError(f"--nodes is {self.nodes}, but the network between them is unknown; give --network-gbps")
        if self.precision == "bfloat16" and self.device.bfloat16_tflops is None:
            raise InputError(f"--precision is bfloat16: {self.device.name} has no units for it; use float32")


@dataclass(frozen=True)
class Layout:
    """Sharing of network and batch among the devices (`training.parallel`)."""

    name: LayoutName
    width: int
    """Devices that share a network."""


def choose_layout(job: Job, name: LayoutName) -> Layout:
    """Return the layout `name`, as wide as a node and the network allow.

    Raises:
        InputError: the network or the number of GPUs cannot have it.
    """
    if name == "data":
        return Layout("data", 1)
    per_node = job.gpus // job.nodes
    if name == "model":
        if job.network.towers == 1:
            raise InputError("model parallelism needs towers; this network has 1")
        width = job.network.towers
        if per_node % width:
            raise InputError(f"model parallelism needs {width} GPUs on the same node; there are {per_node}")
        return Layout("model", width)
    if not job.network.hybrid:
        raise InputError("hybrid parallelism is for alexnet-owt")
    width = math.gcd(per_node, job.network.largest_width)
    if width == 1:
        raise InputError(f"hybrid parallelism needs at least 2 GPUs on the same node; there are {per_node}")
    return Layout("hybrid", width)


@dataclass(frozen=True)
class Estimate:
    """Needs of a job in one layout. Times are in seconds, sizes in bytes, rates in 1/s."""

    layout: Layout
    step: StepTime
    """Computation on each device."""
    activations_seconds: float
    """Exchange of activations and their gradients."""
    gradients_seconds: float
    """Averaging of the gradients, all of it."""
    gradients_exposed: float
    """The part of it that the backward pass of the convolutions does not cover."""
    exchanged_bytes: float
    """Bytes that each device sends in a step."""
    step_seconds: float
    """Entire step, decoding left out."""
    images_per_second: float
    """All devices together, with the limit of decoding."""
    limit: str
    """step or decoding, whichever is slower."""
    decode_cores: float
    """Cores of all nodes that decoding needs at this rate."""
    storage_bytes_per_second: float
    """Rate at which shards are read, by all nodes together."""
    memory_bytes: float
    """Memory of each device."""

    def hours(self, images: float, epochs: int) -> float:
        """Return the hours of the training steps of some epochs, without start and validation."""
        return images * epochs / self.images_per_second / 3600


def estimate(job: Job, layout: Layout, constants: Constants, *, fed: bool = True) -> Estimate:
    """Return the estimate; with `fed` False images lie on the device, and nothing is decoded."""
    loads = device_loads(job, layout)
    cores = job.cores or 1
    step = estimate_step(loads, constants, job.device, job.precision, job.compiled, cores)
    gradients, gradient_bytes = _gradients(job, layout, constants)
    activations, activation_bytes = _activations(job, layout, constants)
    # Fully connected layers have nearly all parameters, and their gradients are ready before those of the convolutions.
    exposed = max(0.0, gradients - step.convolutions_backward)
    step_seconds = step.total + activations + exposed
    rate, limit = job.batch / step_seconds, "step"
    decoded = _decoded_per_core(job, constants)
    if fed and job.device.kind == "cpu":
        rate = 1 / (1 / rate + 1 / (decoded * cores))  # the same cores do both
    elif fed and (most := _most_decoded(job, constants, decoded)) < rate:
        rate, limit = most, "decoding"
    return Estimate(
        layout=layout,
        step=step,
        activations_seconds=activations,
        gradients_seconds=gradients,
        gradients_exposed=exposed,
        exchanged_bytes=gradient_bytes + activation_bytes,
        step_seconds=step_seconds,
        images_per_second=rate,
        limit=limit,
        decode_cores=rate / decoded,
        storage_bytes_per_second=rate * constants.image_bytes.value,
        memory_bytes=memory_bytes(job, loads),
    )


def device_loads(job: Job, layout: Layout) -> list[LayerLoad]:
    """Return the layers of one device, and the images of a step that each sees."""
    own = job.batch / job.gpus
    if layout.name == "data":
        return [(layer, own) for layer in job.network.layers]
    group = own * layout.width
    if layout.name == "model":
        return [(layer.shard(layout.width), group) for layer in job.network.layers]
    return [
        (layer, own) if layer.is_convolution else (layer.shard(layout.width), group) for layer in job.network.layers
    ]


def memory_bytes(job: Job, loads: list[LayerLoad]) -> float:
    """Return the memory of a device: parameters, values kept for backward, batches of images; no workspaces.

    For each parameter weight, gradient and momentum, and in bfloat16 a copy. For each layer what goes out, again after
    activation and pooling, and twice after LRN, which keeps its denominators. No measurement has checked it.
    """
    size = VALUE_BYTES[job.precision]
    copy = size if job.precision == "bfloat16" else 0
    parameters = sum(layer.parameters for layer, _ in loads) * (3 * PARAMETER_BYTES + copy)
    kept = sum(
        images * (layer.output_values * (2 + 2 * layer.normalised) + layer.passed_values) for layer, images in loads
    )
    batches = BATCHES_IN_MEMORY * loads[0][1] * loads[0][0].input_values * 4
    return parameters + kept * size + batches


def _ring(job: Job, constants: Constants, devices: int, nodes: int, neighbours: int = 1) -> Ring:
    return make_ring(constants, job.device, devices, nodes, job.network_gbps, neighbours)


def _gradients(job: Job, layout: Layout, constants: Constants) -> tuple[float, float]:
    """Return the seconds and the bytes sent of averaging the gradients.

    Each device averages the parameters that it holds over all devices that hold the same: in towers 1/width of all
    layers over 1/width of the devices; in the hybrid the convolutions over all devices.
    """
    size = {True: 0, False: 0}
    for layer in job.network.layers:
        size[layer.is_convolution] += layer.parameters * PARAMETER_BYTES
    peers = _ring(job, constants, job.gpus // layout.width, job.nodes, neighbours=layout.width)
    if layout.name == "hybrid":
        everybody = _ring(job, constants, job.gpus, job.nodes)
        reduced = [(everybody, size[True]), (peers, size[False] / layout.width)]
    else:
        reduced = [(peers, (size[True] + size[False]) / layout.width)]
    seconds = sum(ring.all_reduce(part) for ring, part in reduced)
    return seconds, sum(2 * part * (ring.devices - 1) / ring.devices for ring, part in reduced)


def _activations(job: Job, layout: Layout, constants: Constants) -> tuple[float, float]:
    """Return the seconds and the bytes sent of exchanging activations within a group.

    Where a link stands (`training.parallel.links`): into conv3 (only towers), fc6, fc7 and fc8, forward and backward;
    and the logits, back only in the hybrid. All of it is waited for: the hybrid, which computes one part of the images
    while the next is sent, is a little faster.
    """
    if layout.width == 1:
        return 0.0, 0.0
    ring = _ring(job, constants, layout.width, 1)
    group = job.batch / job.gpus * layout.width
    before = [layer for layer in job.network.layers if layer.name in ("conv5", "fc6", "fc7")]
    if layout.name == "model":
        before += [layer for layer in job.network.layers if layer.name == "conv2"]
    sizes = [layer.passed_values for layer in before for _ in ("forward", "backward")]
    sizes += [job.network.layers[-1].outputs] * (2 if layout.name == "hybrid" else 1)
    scale = group * VALUE_BYTES[job.precision]
    seconds = sum(ring.gather(size * scale) for size in sizes)
    return seconds, sum(sizes) * scale * (layout.width - 1) / layout.width


def _decoded_per_core(job: Job, constants: Constants) -> float:
    if job.decoded_per_core is not None:
        return job.decoded_per_core
    if job.device.kind == "cpu":
        return constants.decoded_per_core_cpu.value
    engines = constants.decoded_per_core_engines if job.device.jpeg_engines else constants.decoded_per_core_gpu
    return engines.value


def _most_decoded(job: Job, constants: Constants, per_core: float) -> float:
    """Return the images/s that the cores of all nodes and the engines of all GPUs can decode."""
    by_cores = math.inf if job.cores is None else job.cores * job.nodes * per_core
    engines = job.device.jpeg_engines
    by_engines = job.gpus * engines * constants.decoded_per_engine.value if engines else math.inf
    return min(by_cores, by_engines)
