"""RAY_ADDRESS, where Ray itself would wait for minutes without a word."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from errors import InputError
from training.launch.ray_cluster import joined_ray


@pytest.fixture
def web_server() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def refused(monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests of this process may have joined one
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"^RAY_ADDRESS is {address}: {message}"), joined_ray():
        pass


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "somewhere"])
def test_an_address_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    refused(monkeypatch, address, "it is not HOST:PORT of a head")


def test_a_head_that_is_gone_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refused(monkeypatch, f"127.0.0.1:{bound.getsockname()[1]}", "no head answers there")


def test_the_port_of_a_dashboard_is_no_head(monkeypatch: pytest.MonkeyPatch, web_server: int) -> None:
    refused(monkeypatch, f"127.0.0.1:{web_server}", "that is a web server")
