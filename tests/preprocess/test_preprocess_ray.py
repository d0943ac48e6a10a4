"""Builds on a real Ray cluster of two nodes on this machine, one of which dies in the middle."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from commands import PROJECT, complaints
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE
from ray.cluster_utils import Cluster
from shard_reading import folder_bytes

from errors import InputError
from preprocess.build import build
from preprocess.build_shards import main
from preprocess.plan import BuildOptions
from preprocess.run.ray_pool import run_tasks_on_ray


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def options(raw: Path, output: Path, address: str) -> BuildOptions:
    return BuildOptions(
        input=raw,
        output=output,
        name="tiny",
        short_side=TINY_SHORT_SIDE,
        shard_samples=TINY_SHARD_SAMPLES,
        max_rejected=MAX_REJECTED,
        ray=address,
    )


@pytest.mark.slow
def test_a_node_that_dies_changes_nothing(
    cluster: Cluster, tiny_shards: Path, raw_folder: Path, tmp_path: Path
) -> None:
    node, output = cluster.add_node(num_cpus=1), tmp_path / "out"
    killed = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(output.glob("*.tar")):
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)
        killed.set()

    killer = threading.Thread(target=kill)
    killer.start()
    build(options(raw_folder, output, cluster.address))
    killer.join()
    assert killed.is_set()
    assert folder_bytes(output) == folder_bytes(tiny_shards)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_so_in_one_line_and_is_continued(
    cluster: Cluster, tiny_shards: Path, raw_folder: Path, tmp_path: Path, number: int, code: int
) -> None:
    output = tmp_path / "out"
    command = ["preprocess.build_shards", "--input", raw_folder, "--output", output, "--name", "tiny"]
    command += ["--short-side", TINY_SHORT_SIDE, "--shard-samples", TINY_SHARD_SAMPLES, "--max-rejected", MAX_REJECTED]
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command), "--ray", cluster.address],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As at a terminal: a test run that was itself started with `&` would hand down that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(output.glob("*.tar")):
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (code, "")
    (line,) = complaints(err)
    assert line.startswith("build_shards: interrupted; ")
    left = [path.name for path in output.rglob("*")]
    assert not [name for name in left if name.endswith(".partial") or name in ("manifest.json", ".build.lock")]
    build(options(raw_folder, output, cluster.address))
    assert folder_bytes(output) == folder_bytes(tiny_shards)


class OnlyHere:
    """A task that no other process can load, as where a node lacks the project."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["process"] != os.getpid():
            raise ModuleNotFoundError("No module named 'preprocess'")


@pytest.mark.slow
def test_nodes_without_the_project_are_said(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray aborts now and then where a task that has just ended is cancelled.
    monkeypatch.setattr("ray.cancel", lambda *_, **__: pytest.fail("a task that has ended was cancelled"))
    with pytest.raises(InputError, match=f"--ray {cluster.address}: a node cannot load its task .*No module named"):
        run_tasks_on_ray(str, [OnlyHere()], cluster.address, lambda _: None)


def test_without_a_cluster_it_says_so(raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="--ray auto: cannot join a Ray cluster"):
        build(options(raw_folder, tmp_path / "out", "auto"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["nowhere", "local", "ray://127.0.0.1:10001"])  # Ray takes the last two
def test_what_is_no_address_is_the_command_s_to_say(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    arguments = ["--input", raw_folder, "--output", tmp_path / "out", "--ray", address]
    assert main(list(map(str, arguments))) == 2
    assert capsys.readouterr().err == (
        f"build_shards: --ray {address}: cannot join a Ray cluster ('{address}' is not HOST:PORT); use `auto` "
        "where one runs, or HOST:PORT of its head\n"
    )
    assert not ray.is_initialized()


def test_an_address_where_nobody_listens_is_said_at_once(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as bound:  # to a port on which it does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert main(["--input", str(raw_folder), "--output", str(tmp_path / "out"), "--ray", address]) == 2
    assert capsys.readouterr().err == (
        f"build_shards: --ray {address}: cannot join a Ray cluster (Connection refused); use `auto` where one runs, "
        "or HOST:PORT of its head\n"
    )
