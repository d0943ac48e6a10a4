"""The data that devices exchange in a step, and its time: rings over the slowest link.

A ring of n devices all-reduces b bytes in 2(n-1) steps of b/n bytes (Patarasuk, Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations"), and gathers or reduce-scatters them in n-1. Each step also has a
latency, and so has each collective (NCCL, `src/graph/tuning.cc`).
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.sizing.constants import Constants, Device


@dataclass(frozen=True)
class Ring:
    """A ring of devices that exchange data."""

    devices: int
    nodes: int
    """Nodes that it runs through."""
    bytes_per_second: float
    """Bandwidth of its slowest link in one direction."""
    base_latency: float
    """Seconds for each collective."""
    inner_latency: float
    """Seconds for each step within a node."""
    outer_latency: float
    """Seconds for each step between nodes."""

    def all_reduce(self, size: float) -> float:
        """Return the seconds in which all devices have the sum of `size` bytes of each."""
        return 2 * self.gather(size) - self.base_latency if self.devices > 1 else 0.0

    def gather(self, size: float) -> float:
        """Return the seconds in which all devices have `size` bytes, of which each brought an equal part.

        A reduce-scatter of as many bytes takes the same time.
        """
        if self.devices == 1:
            return 0.0
        outer = self.nodes - 1
        latency = self.base_latency + (self.devices - 1 - outer) * self.inner_latency + outer * self.outer_latency
        return size * (self.devices - 1) / self.devices / self.bytes_per_second + latency


def make_ring(
    constants: Constants, device: Device, devices: int, nodes: int, network_gbps: float | None, neighbours: int
) -> Ring:
    """Return a ring of `devices` GPUs on `nodes` nodes.

    Args:
        constants: latencies.
        device: the GPUs.
        devices: number of GPUs in the ring.
        nodes: number of nodes that it runs through.
        network_gbps: network of a node in one direction, in 10^9 bits/s; None: there is one node.
        neighbours: rings that share the network of a node at the same time.
    """
    if device.link is None or device.link_gb_per_s is None:
        assert devices == 1, "checked by `Job`"
        return Ring(1, 1, float("inf"), 0.0, 0.0, 0.0)
    rate = device.link_gb_per_s * 1e9
    if nodes > 1:
        assert network_gbps is not None
        rate = min(rate, network_gbps * 1e9 / 8 / neighbours)
    inner = constants.latency_nvlink if device.link == "nvlink" else constants.latency_pci
    base, outer = constants.latency_base, constants.latency_network
    return Ring(devices, nodes, rate, base.value * 1e-6, inner.value * 1e-6, outer.value * 1e-6)
