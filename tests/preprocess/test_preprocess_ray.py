"""Builds on a real Ray cluster of two nodes on this machine, one of which dies in the middle."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from raw_data import MAX_REJECTED, TINY_SHARD_SAMPLES, TINY_SHORT_SIDE
from ray.cluster_utils import Cluster
from shard_reading import folder_bytes

from preprocess.build import build
from preprocess.build_shards import main
from preprocess.manifest import InputError
from preprocess.plan import BuildOptions


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


def test_without_a_cluster_it_says_so(raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="--ray auto: cannot join a Ray cluster"):
        build(options(raw_folder, tmp_path / "out", "auto"))
    assert not (tmp_path / "out").exists()


def test_the_option_is_the_command_s(raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--input", raw_folder, "--output", tmp_path / "out", "--ray", "nowhere"]
    assert main(list(map(str, arguments))) == 2
    assert "--ray nowhere: cannot join a Ray cluster" in capsys.readouterr().err


def test_an_address_where_nobody_listens_is_said_at_once(
    raw_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as bound:  # to a port on which it does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert main(["--input", str(raw_folder), "--output", str(tmp_path / "out"), "--ray", address]) == 2
    assert capsys.readouterr().err == (
        f"build_shards: --ray {address}: cannot join a Ray cluster (Connection refused); valid are `auto` where one "
        "runs, or HOST:PORT of its head\n"
    )
