"""The network interface through which a worker talks to its peers, and a check that it reaches them there."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import threading

import psutil
from torch.distributed import Store

from errors import InputError

VARIABLES = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}
"""Environment variables that name the interface, by backend; a value that is set is kept."""
REACH_SECONDS = 10.0
"""Timeout of a connection to a peer."""
_INTERNET = (socket.AF_INET, socket.AF_INET6)


class PeerError(ConnectionError):
    """A worker does not reach another one."""


def choose_interface(backend: str, node_address: str) -> str:
    """Name the interface of Ray's address to the backend, unless its variable is set; return the address to use.

    Left to themselves, gloo takes what the host's name resolves to, often 127.0.1.1, and NCCL the first interface that
    is not loopback, such as the bridge of containers.

    Raises:
        InputError: the variable names no interface of this host, or none has Ray's address.
    """
    variable, addresses = VARIABLES[backend], host_addresses()
    value, host = os.environ.get(variable, ""), socket.gethostname()
    if value:
        chosen = [name for name in addresses if _is_meant(backend, value, name)]
        if not chosen:
            there = " or ".join(sorted(addresses))
            raise InputError(f"{variable} is {value}: {host} has no such interface; use {there}, or unset it")
        return node_address if node_address in addresses[chosen[0]] else addresses[chosen[0]][0]
    for name, own in addresses.items():
        if node_address in own:
            os.environ[variable] = f"={name}" if backend == "nccl" else name
            return node_address
    raise InputError(
        f"Ray's address of {host} is {node_address}: no interface has it; use `ray start --node-ip-address` with one "
        f"of {', '.join(sorted(address for own in addresses.values() for address in own))}"
    )


def host_addresses() -> dict[str, list[str]]:
    """Return the addresses of this host by interface, without those that are valid on one link only."""
    found = {
        name: [entry.address for entry in entries if entry.family in _INTERNET and "%" not in entry.address]
        for name, entries in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def check_peers(
    store: Store, rank: int, workers: int, backend: str, addresses: tuple[str, str], seconds: float = REACH_SECONDS
) -> None:
    """Connect to the next worker at the address that it uses; all workers must call it together.

    Args:
        store: shared by the workers.
        rank: of this worker, of `workers` in all.
        workers: their number.
        backend: `gloo` or `nccl`.
        addresses: Ray's address of this host, and the one that this worker uses.
        seconds: timeout of a connection.

    Raises:
        InputError: the next worker is on another host and uses an address of loopback.
        PeerError: it does not answer.
    """
    node, address = addresses
    with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        server.settimeout(seconds)
        answering = threading.Thread(target=_answer, args=(server, rank), daemon=True)
        answering.start()
        store.set(f"peer/{rank}", json.dumps([socket.gethostname(), node, *server.getsockname()[:2]]))
        peer = (rank + 1) % workers
        host, its_node, its_address, port = json.loads(store.get(f"peer/{peer}"))
        if its_node != node and ipaddress.ip_address(its_address).is_loopback:
            raise InputError(
                f"{VARIABLES[backend]} means {its_address} on {host}: other hosts do not reach loopback; unset it, or "
                "name an interface between the hosts"
            )
        try:
            _check_answer((its_address, port), peer, seconds)
        except OSError as error:
            raise PeerError(
                f"{socket.gethostname()} ({address}) does not reach worker {peer} on {host} ({its_address}): "
                f"{error.strerror or error}; name an interface between the hosts in {VARIABLES[backend]}, and let "
                "their firewalls pass all ports between them"
            ) from error
        answering.join()


def _answer(server: socket.socket, rank: int) -> None:
    try:
        connection, _ = server.accept()
        with connection:
            connection.sendall(str(rank).encode())
    except OSError:  # nobody came: the one who should have says why
        return


def _check_answer(peer_address: tuple[str, int], peer: int, seconds: float) -> None:
    """Raise `OSError` unless this very worker answers: each host may have a bridge of its own with the same address."""
    with socket.create_connection(peer_address, seconds) as connection:
        answer = connection.makefile("rb").read()
    if answer != str(peer).encode():
        raise ConnectionError("another process answers there")


def _is_meant(backend: str, value: str, name: str) -> bool:
    """Tell whether the value of a variable means an interface: NCCL's are prefixes, `=` exact names, `^` others."""
    if backend == "gloo":
        return name in value.split(",")
    names = value.lstrip("^=").split(",")
    is_named = name in names if "=" in value[:2] else name.startswith(tuple(names))
    return is_named != value.startswith("^")
