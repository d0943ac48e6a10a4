"""`python -m benchmarks.object_store --data SHARDS`: batches from an S3 store against the disk, in one run.

A real S3 server of this machine (moto) gets a copy of the shards. In turn, a loader reads them from the disk, and from
the store with an empty staging folder: the time to the first batch, then two epochs, of which the second finds all of
its shards in the staging folder. Nothing trains: a step would hide the wait for shards.

With --network the server is a host of its own, in a network namespace, at the end of a link of so many megabytes a
second (`tc`; needs root), and waits so many milliseconds before each answer, as a request waits for the way there and
back: not every kernel has `netem`, which would delay packets.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.options import positive_int
from command_line import CommandParser
from errors import InputError
from machine_limits import cpu_count
from object_store import StoreFolder
from pipeline.loader import make_loader
from pipeline.reading.staging import Staging
from preprocess.manifest import read_manifest
from training.cli import run_command

BUCKET = "bucket"
BATCH_SIZE = 128
NAMESPACE, OUTER, INNER = "twotower-store", "tt-store-0", "tt-store-1"
HOST_ADDRESS, STORE_ADDRESS = "10.231.77.1", "10.231.77.2"
START_SECONDS = 120
SERVER = """
import sys, time
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
application = DomainDispatcherApplication(create_backend_app)
def late(environ, start_response):
    time.sleep(float(sys.argv[3]) / 1000)
    return application(environ, start_response)
run_simple(sys.argv[1], int(sys.argv[2]), late, threaded=True)
"""


class Turn(NamedTuple):
    """One turn of a loader that was opened for it."""

    first_seconds: float
    """From the call of `make_loader` to the first batch."""
    first_rate: float
    """Images per second of epoch 1, the wait for its first batch included."""
    second_rate: float
    """Images per second of epoch 2."""


UNITS = {
    "first_seconds": "s to the first batch",
    "first_rate": "images/s in epoch 1",
    "second_rate": "images/s in epoch 2",
}


def main(arguments: Sequence[str]) -> None:
    """Measure, print a table and the ratios."""
    parser = CommandParser(prog="python -m benchmarks.object_store", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of shards; its train split is read")
    parser.add_argument("--rounds", type=positive_int, default=3, help="turns of each (default: 3)")
    parser.add_argument(
        "--workers", type=positive_int, default=cpu_count(), help="decoding threads (default: all CPUs)"
    )
    parser.add_argument(
        "--network",
        nargs=2,
        type=positive_int,
        metavar=("MB_PER_S", "MS"),
        help="bandwidth and round trip of the link to the store (default: loopback as it is)",
    )
    options = parser.parse_args(arguments)
    split = read_manifest(options.data).split("train")
    total = sum(shard.bytes for shard in split.shards)
    print(f"{split.samples} images in {len(split.shards)} shards of {total / 1e6:.0f} MB", flush=True)
    turns: dict[str, list[Turn]] = {"disk": [], "store": []}
    with store(options.network) as endpoint, tempfile.TemporaryDirectory() as folder:
        os.environ.update(credentials(endpoint))
        upload(options.data)
        for number in range(options.rounds):
            for name, data in (("disk", str(options.data)), ("store", f"s3://{BUCKET}/shards")):
                turns[name].append(in_its_own_process(data, f"{folder}/{number}", options.workers))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    report(turns)


def in_its_own_process(data: str, staging: str, workers: int) -> Turn:
    """Return one turn of a new process: what one sets in DALI or the allocator does not reach another."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, data, staging, workers).result()


def measure(data: str, staging: str, workers: int) -> Turn:
    """Open a loader, take two epochs of it."""
    started = time.perf_counter()
    loader = make_loader(data, "train", BATCH_SIZE, num_threads=workers, staging=Staging(staging))
    first = 0.0
    rates = []
    for _ in range(2):
        for _ in loader:
            first = first or time.perf_counter() - started
        now = time.perf_counter()
        rates.append(len(loader) * BATCH_SIZE / (now - started))
        started = now
    return Turn(first, *rates)


def report(turns: dict[str, list[Turn]]) -> None:
    """Print the median and the range of each figure, and the ratio of both, round by round."""
    for field, unit in UNITS.items():
        measured = {name: [getattr(turn, field) for turn in of_name] for name, of_name in turns.items()}
        for name, values in measured.items():
            spread = f"({min(values):.2f}-{max(values):.2f})"
            print(f"{statistics.median(values):9.2f} {spread:18} n={len(values)}  {unit}, {name}")
        ratios = [there / here for there, here in zip(measured["store"], measured["disk"], strict=True)]
        print(f"{statistics.median(ratios):9.2f} ({min(ratios):.2f}-{max(ratios):.2f})  store / disk")


def credentials(endpoint: str) -> dict[str, str]:
    """Return the environment variables of the store at an address."""
    named = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    return {**named, "AWS_ENDPOINT_URL": endpoint}


def upload(folder: Path) -> None:
    """Put a data set into the store."""
    from pyarrow.fs import FileSystem

    filesystem, _ = FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")
    filesystem.create_dir(BUCKET)
    target = StoreFolder(f"s3://{BUCKET}/shards")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            target.upload(path, path.name)


@contextlib.contextmanager
def store(network: Sequence[int] | None) -> Iterator[str]:
    """Run an S3 server, at the end of such a link if there is one; yield its address."""
    with contextlib.ExitStack() as stack:
        if network is None:
            prefix, host, wait = [], "127.0.0.1", 0
        else:
            stack.enter_context(link(network[0]))
            prefix, host, wait = ["ip", "netns", "exec", NAMESPACE], STORE_ADDRESS, network[1]
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
        command = [*prefix, sys.executable, "-c", SERVER, host, str(port), str(wait)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(host, port, server)
            yield f"http://{host}:{port}"
        finally:
            server.kill()
            server.wait()


@contextlib.contextmanager
def link(megabytes_per_second: int) -> Iterator[None]:
    """Make a network namespace for the store, with a link of this bandwidth; remove it at the end."""
    shape = ["tbf", "rate", f"{8 * megabytes_per_second}mbit", "burst", "1mb", "latency", "100ms"]
    inside = ["ip", "netns", "exec", NAMESPACE]
    commands = [
        ["ip", "netns", "add", NAMESPACE],
        ["ip", "link", "add", OUTER, "type", "veth", "peer", "name", INNER, "netns", NAMESPACE],
        ["ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", OUTER],
        ["ip", "link", "set", OUTER, "up"],
        [*inside, "ip", "address", "add", f"{STORE_ADDRESS}/24", "dev", INNER],
        [*inside, "ip", "link", "set", INNER, "up"],
        ["tc", "qdisc", "add", "dev", OUTER, "root", *shape],
        [*inside, "tc", "qdisc", "add", "dev", INNER, "root", *shape],
    ]
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = done.stderr.strip().partition("\n")[0]
                raise InputError(f"--network is {megabytes_per_second}: {' '.join(command)}: {reason}; "
                                 "use it as root, with iproute2 installed")  # fmt: skip
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], capture_output=True, check=False)


def wait_for(host: str, port: int, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers; raise `InputError` if it has ended, or does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.1)
    raise InputError("the S3 server does not start; install the packages moto[s3] and flask-cors")


if __name__ == "__main__":
    sys.exit(run_command(main))
