"""The process group of the workers.

Ray Train's own set-up chooses a port and lets torch's store listen on it later, on all interfaces of the machine, where
whoever reaches it may change what the workers tell each other. Here the store listens on the one address of its node
from the beginning.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig

from training.launch.interfaces import check_peers, choose_interface
from training.launch.request_watch import note_sigterm

STORE_CONNECT_SECONDS = 30.0
"""Time to reach the store, which listens already."""


@dataclass(frozen=True)
class _Meeting:
    """Where the workers meet: the address of the first one's store."""

    backend: str
    host: str
    port: int
    seconds: float
    """Timeout of a collective."""


_store: dist.TCPStore | None = None  # of the first worker: it lives as long as the process
_meeting: _Meeting | None = None


@dataclass
class ProcessGroupConfig(TorchConfig):
    """Set-up of the workers: the process group, and a handler of SIGTERM that saves a checkpoint."""

    grace_seconds: float = 30.0
    """Time to save; then, and at a second SIGTERM, the worker ends."""

    @property
    def backend_cls(self) -> type:
        """The class that sets up the workers."""
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # a class that has no public name
    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
        host, port = worker_group.execute_single(0, _open_store, backend_config.timeout_s)
        worker_group.execute(_note_meeting, _Meeting(backend, host, port, backend_config.timeout_s))

    def on_training_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        # In the main threads of the workers: training runs in another one, which may not install it.
        worker_group.execute(note_sigterm, backend_config.grace_seconds)


def _open_store(seconds: float) -> tuple[str, int]:
    global _store
    host = ray.util.get_node_ip_address()
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        port: int = server.getsockname()[1]
        _store = dist.TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
            master_listen_fd=os.dup(server.fileno()),  # the store closes it
        )
    return host, port


def _note_meeting(meeting: _Meeting) -> None:
    global _meeting
    _meeting = meeting


def join_process_group(rank: int, workers: int) -> None:
    """Join the process group, in the training of each worker: a failure there is one of the worker, and tried again.

    Raises:
        InputError: a variable names a network interface that this host lacks, or that other hosts do not reach.
        PeerError: the next worker cannot be reached.
    """
    assert _meeting is not None
    backend, node = _meeting.backend, ray.util.get_node_ip_address()
    address = choose_interface(backend, node)
    store = dist.TCPStore(
        _meeting.host, _meeting.port, is_master=False, timeout=timedelta(seconds=STORE_CONNECT_SECONDS)
    )
    timeout = timedelta(seconds=_meeting.seconds)
    store.set_timeout(timeout)
    check_peers(store, rank, workers, backend, (node, address))
    dist.init_process_group(backend, store=store, rank=rank, world_size=workers, timeout=timeout)
