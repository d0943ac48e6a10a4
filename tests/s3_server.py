"""A real S3 server on loopback, of moto, in a process of its own, and a proxy before it that does what networks do."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pyarrow.fs import S3FileSystem, copy_files

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@dataclass
class Fault:
    """A way to answer some requests badly."""

    applies: Callable[[str, str], bool]
    """Tells from method and path whether this request is meant."""
    answer: Callable[[BaseHTTPRequestHandler, int, list[tuple[str, str]], bytes], None] | None
    """Answers in place of the server: takes the handler, and the server's status, headers and content."""
    times: int = 1 << 30
    """Number of requests that meet it."""


@dataclass
class FaultyStore:
    """The address of the proxy, and what it does wrong."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of all so far."""

    def gets(self, ending: str) -> int:
        """Count the requests for the content of a file."""
        return sum(method == "GET" and path.partition("?")[0].endswith(ending) for method, path in self.requests)

    def fault(self, answer: Callable[..., None], ending: str = "", method: str = "GET", times: int = 1 << 30) -> None:
        """Answer badly to the next requests whose path ends so; an empty `ending` means all of that method."""

        def applies(its_method: str, path: str) -> bool:
            return its_method == method and path.partition("?")[0].endswith(ending)

        self.faults.append(Fault(applies, answer, times))


def refuse(status: int, code: str) -> Callable[..., None]:
    """Answer with an error of S3."""

    def answer(handler: BaseHTTPRequestHandler, *_: object) -> None:
        page = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode()
        send(handler, status, [("Content-Type", "application/xml")], page)

    return answer


def cut(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    """Announce the content, send half of it, and close the connection."""
    handler.send_response_only(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def damage(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    """Change a byte in the middle, as a bad disk behind the store would: its own checksums do not see it."""
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    send(handler, status, [pair for pair in headers if "checksum" not in pair[0].lower()], changed)


def slow(seconds: float) -> Callable[..., None]:
    """Answer rightly, after a while."""

    def answer(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        time.sleep(seconds)
        send(handler, status, headers, content)

    return answer


def hold(released: threading.Event) -> Callable[..., None]:
    """Answer rightly, once it may."""

    def answer(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        released.wait(600)
        send(handler, status, headers, content)

    return answer


def send(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    handler.send_response_only(status)
    for name, value in headers:
        if name.lower() != "content-length" or handler.command == "HEAD":
            handler.send_header(name, value)
    if handler.command != "HEAD":
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run the server with an empty bucket; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with (folder / "moto.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(port, server)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait(60)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.1)


@contextlib.contextmanager
def proxy(server: str) -> Iterator[FaultyStore]:
    """Run a proxy before the server at an address."""
    target = server.removeprefix("http://")

    hop = {"connection", "transfer-encoding", "date", "server", "expect"}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            store.requests.append((self.command, self.path))
            content = self.read_body()
            connection = http.client.HTTPConnection(target, timeout=60)
            sent = {name: value for name, value in self.headers.items() if name.lower() not in hop}
            connection.request(self.command, self.path, content, sent)
            answer = connection.getresponse()
            headers = [pair for pair in answer.getheaders() if pair[0].lower() not in hop]
            body = answer.read()
            connection.close()
            fault = next((one for one in store.faults if one.times and one.applies(self.command, self.path)), None)
            if fault is None or fault.answer is None:
                send(self, answer.status, headers, body)
            else:
                fault.times -= 1
                fault.answer(self, answer.status, headers, body)

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # connections that the proxy or a killed process has cut

    assert issubclass(Server, socketserver.BaseServer)
    with Server(("127.0.0.1", 0), Handler) as listening:
        store = FaultyStore(f"http://127.0.0.1:{listening.server_address[1]}")
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield store
        listening.shutdown()


def upload(endpoint: str, folder: Path, prefix: str) -> None:
    """Put the files of a folder into the bucket."""
    store = S3FileSystem(
        access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region=CREDENTIALS["AWS_REGION"],
        endpoint_override=endpoint,
    )
    copy_files(str(folder), f"{BUCKET}/{prefix}", destination_filesystem=store)


def environment(endpoint: str) -> dict[str, str]:
    """Return the environment of a process that uses the store at an address."""
    return {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
