"""The interface through which workers talk: chosen by Ray's address of the host, and tried before the training."""

import json
import os
import socket
import threading

import pytest
from torch.distributed import HashStore

from errors import InputError
from training.launch.interfaces import VARIABLES, check_peers, choose_interface

LOOPBACK = "127.0.0.1"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, "")


@pytest.mark.parametrize(("backend", "value"), [("gloo", "lo"), ("nccl", "=lo")])
def test_it_is_the_one_with_ray_s_address(backend: str, value: str) -> None:
    assert choose_interface(backend, LOOPBACK) == LOOPBACK
    assert os.environ[VARIABLES[backend]] == value


@pytest.mark.parametrize(
    ("backend", "value"), [("gloo", "other,lo"), ("nccl", "l"), ("nccl", "=lo"), ("nccl", "^eth,ens"), ("nccl", "^=l")]
)
def test_a_variable_that_is_set_is_kept(backend: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[backend], value)
    monkeypatch.setattr("training.launch.interfaces.host_addresses", lambda: {"lo": [LOOPBACK]})
    assert choose_interface(backend, "10.0.0.7") == LOOPBACK
    assert os.environ[VARIABLES[backend]] == value


@pytest.mark.parametrize(("backend", "value"), [("gloo", "l"), ("nccl", "=l"), ("nccl", "eth"), ("nccl", "^lo")])
def test_an_interface_that_the_host_lacks_is_refused(backend: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[backend], value)
    monkeypatch.setattr("training.launch.interfaces.host_addresses", lambda: {"lo": [LOOPBACK]})
    message = f"SOCKET_IFNAME is .{value[1:]}: {socket.gethostname()} has no such interface; use lo, or unset it"
    with pytest.raises(InputError, match=message):
        choose_interface(backend, LOOPBACK)


def test_an_address_that_no_interface_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"is 192\.0\.2\.1: no interface has it; use `ray start --node-ip-address`"):
        choose_interface("gloo", "192.0.2.1")


def test_workers_that_reach_each_other_go_on() -> None:
    store, done = HashStore(), []

    def work(rank: int) -> None:
        check_peers(store, rank, 3, "gloo", (LOOPBACK, LOOPBACK))
        done.append(rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [0, 1, 2]


def meet(node: str, address: str, port: int) -> None:
    """Be worker 0 of two, whose peer is said to be there."""
    store = HashStore()
    store.set("peer/1", json.dumps(["other", node, address, port]))
    check_peers(store, 0, 2, "gloo", (LOOPBACK, LOOPBACK), seconds=2)


def test_a_peer_that_does_not_answer_is_named() -> None:
    with socket.socket() as bound:  # to a port on which it does not listen
        bound.bind((LOOPBACK, 0))
        message = r"\(127\.0\.0\.1\) does not reach worker 1 on other \(127\.0\.0\.1\): Connection refused; name an "
        with pytest.raises(ConnectionError, match=message):
            meet(LOOPBACK, LOOPBACK, bound.getsockname()[1])


def test_a_bridge_whose_address_every_host_has_is_noticed() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(
            ConnectionError, match=r"does not reach worker 1 on other .*: another process answers there"
        ):
            meet(LOOPBACK, LOOPBACK, server.getsockname()[1])


def test_loopback_between_hosts_is_refused() -> None:
    with pytest.raises(InputError, match=r"GLOO_SOCKET_IFNAME means 127\.0\.0\.1 on other: other hosts do not reach"):
        meet("10.0.0.7", LOOPBACK, 1)
