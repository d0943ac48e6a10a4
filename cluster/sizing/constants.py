"""The figures that an estimate is made from, each with its origin, source and date: `constants.json`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typed_json import read_versioned_json

PATH = Path(__file__).with_name("constants.json")
Precision = Literal["bfloat16", "float32"]
Origin = Literal["measured here", "vendor", "list price", "published", "assumed"]
LayoutName = Literal["data", "model", "hybrid"]


@dataclass(frozen=True)
class Figure:
    """One number and where it comes from."""

    value: float
    unit: str
    origin: Origin
    source: str
    """Command and commit, or a page."""
    date: str
    """Year, month and day, as far as known."""


@dataclass(frozen=True)
class Device:
    """A GPU, with the vendor's figures, or a CPU, with measured figures of one core."""

    name: str
    kind: Literal["gpu", "cpu"]
    bfloat16_tflops: float | None
    """Peak of products in bfloat16 without sparsity, in 10^12 operations/s; None: no such units. Of a CPU: attained."""
    convolution_float32_tflops: float
    """The same of convolutions in float32: with TF32 where there is TF32, as cuDNN takes it."""
    product_float32_tflops: float
    """The same of products in float32, for which torch takes no TF32."""
    memory_gb: float | None
    """Memory of a GPU in 10^9 bytes; None: the machine's."""
    memory_gb_per_s: float | None
    """Bandwidth of its memory in 10^9 bytes/s; None: contained in the attained operations."""
    link: Literal["nvlink", "pci"] | None
    """Link between the GPUs of a node."""
    link_gb_per_s: float | None
    """Bandwidth of that link in one direction, in 10^9 bytes/s."""
    gpus_per_node: int
    """GPUs of the usual machine."""
    jpeg_engines: int
    """JPEG decoders of a GPU."""
    cores: int | None
    """CPU cores of the usual machine: those of the instance whose price is given, or those measured."""
    network_gbps: float | None
    """Network of that machine in 10^9 bits/s."""
    price: Figure | None
    """USD for a GPU and an hour."""
    origin: Origin
    source: str
    date: str

    def peak(self, precision: Precision, *, convolution: bool) -> float:
        """Return the peak in operations/s."""
        if precision == "bfloat16":
            assert self.bfloat16_tflops is not None, "checked by `Job`"
            return self.bfloat16_tflops * 1e12
        return (self.convolution_float32_tflops if convolution else self.product_float32_tflops) * 1e12


@dataclass(frozen=True)
class Row:
    """A measured training speed, and the settings with which it is predicted."""

    what: str
    network: str
    gpu: str
    gpus: int
    nodes: int
    batch: int
    layout: LayoutName
    precision: Precision
    compiled: bool
    fed: bool
    """Images came from a loader; False: one batch stayed on the device."""
    images_per_second: float
    origin: Origin
    source: str
    date: str
    network_gbps: float | None = None
    cores: int | None = None
    decoded_per_core: float | None = None
    """Images/s that a core decodes, where images are smaller than ImageNet's."""
    calibration: bool = False
    """A constant was chosen to meet this row: its error says nothing."""
    reason: str = ""
    """Cause of an error above 25 %."""


@dataclass(frozen=True)
class Constants:
    """All of `constants.json`."""

    schema: int
    product_share: Figure
    """Part of a GPU's peak that one large product attains."""
    convolution_share: Figure
    """Part of that product's speed that the convolutions of a training step attain."""
    cpu_lrn_eager: Figure
    """Time of LRN on one core, forward and backward."""
    cpu_lrn_compiled: Figure
    decoded_per_core_cpu: Figure
    """Images/s that one core decodes, crops and mirrors, on a machine without GPU."""
    decoded_per_core_gpu: Figure
    """The same on a machine whose GPUs have no JPEG engines."""
    decoded_per_core_engines: Figure
    """The same where JPEG engines decode 0.8 of each batch."""
    decoded_per_engine: Figure
    """Images/s for each JPEG engine, at the best setting."""
    image_bytes: Figure
    """Bytes of an image in the shards."""
    train_images: Figure
    latency_base: Figure
    """Latency of a collective."""
    latency_nvlink: Figure
    """Latency of one step of a ring."""
    latency_pci: Figure
    latency_network: Figure
    devices: dict[str, Device]
    rows: tuple[Row, ...]


@functools.cache
def load_constants() -> Constants:
    """Read `constants.json`, once."""
    return read_versioned_json(Constants, PATH, 1)
