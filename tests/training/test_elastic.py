"""A training on a cluster that has no room at first, loses a node, gets another one, and has to give one back."""

import contextlib
import dataclasses
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from errors import InputError
from training.checkpoint import MODEL, read_model
from training.config import Checkpointing, Config, Parallel
from training.launch import ray_train
from training.launch.launcher import launch
from training.launch.store import CheckpointStore
from training.recipes import RECIPES
from training.tracking import open_client

pytestmark = pytest.mark.slow
WAITING = "waiting for room for 1 workers with 1 CPU each; the cluster has 0 of 0 CPU free"
STEPS_PER_EPOCH = 2


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without cores, which no worker runs on; Ray Train looks often for nodes that come and go."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setattr(ray_train, "RESIZE_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": port})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def config(four_classes: Path) -> Config:
    base = RECIPES["tiny-imagenet"]()
    return dataclasses.replace(
        base,
        data=str(four_classes),
        epochs=1000,
        batch_size=60,
        device="cpu",
        precision="float32",
        max_failures=10,
        parallel=Parallel("1..3", 1, 1),
        checkpoint=Checkpointing(every_steps=1),
        log_every=1,
        # The number of workers decides on the masks of dropout, and on rounding, whose effect grows with each step,
        # and much faster from the large weights of the recipe's own `he`.
        optimizer=dataclasses.replace(base.optimizer, learning_rate=2e-4, schedule="constant", warmup_epochs=0.0),
        network=dataclasses.replace(base.network, dropout=0.0, init="torch"),
    )


class Timeline:
    """Changes of the cluster, in order, each when the training has come further on as many workers as there are.

    Ray's test cluster installs signal handlers, which only the main thread may: the training runs in another one.
    """

    def __init__(self, cluster: Cluster, storage: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.cluster, self.storage, self.capture = cluster, storage, capture
        self.said = ""
        self.steps: list[int] = []
        """Step of the newest checkpoint at each change."""

    def run(self) -> None:
        self.wait_until(lambda: WAITING in self.output())
        first, second, _ = (self.cluster.add_node(num_cpus=1) for _ in range(3))
        self.await_workers(3)
        self.cluster.remove_node(first, allow_graceful=False)
        self.await_workers(2)
        self.cluster.add_node(num_cpus=1)
        self.await_workers(3)
        self.drain(second.node_id)
        self.await_workers(2)
        (run,) = {path.parent for path in self.storage.glob("*/step-*")}
        CheckpointStore(str(self.storage), run.name).request("stop")

    def await_workers(self, number: int) -> None:
        """Wait until as many workers have written three more checkpoints."""
        self.wait_until(lambda: workers() == number)
        before = self.step()
        self.wait_until(lambda: self.step() >= before + 3)
        assert workers() == number
        self.steps.append(self.step())

    def drain(self, node: str) -> None:
        """Announce that the node is taken back in 15 seconds, as the agent of a cloud does."""
        command = ["drain-node", "--address", self.cluster.address, "--node-id", node]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", "15"]
        subprocess.run([Path(sys.executable).with_name("ray"), *command], check=True, capture_output=True)

    def output(self) -> str:
        self.said += "".join(self.capture.readouterr())
        return self.said

    def step(self) -> int:
        return max((int(path.name[5:]) for path in self.storage.glob("*/step-*")), default=-1)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, (
                f"{workers()} workers, steps {self.steps}, then {self.step()}\n{self.said}"
            )
            time.sleep(0.1)


def workers() -> int:
    count = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            count += "RayTrainWorker" in " ".join(process.cmdline())
    return count


def test_a_training_that_shrinks_and_grows_has_the_same_weights(
    cluster: Cluster, config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    timeline = Timeline(cluster, tmp_path / "runs", capfd)
    training: Future[str] = Future()
    # A daemon: it does not end by itself if the timeline fails.
    threading.Thread(target=lambda: training.set_result(launch(config, tmp_path)), daemon=True).start()
    timeline.run()
    elastic_run = training.result(timeout=600)
    elastic = CheckpointStore(str(tmp_path / "runs"), elastic_run)
    step = elastic.newest()
    assert step is not None
    one_worker = dataclasses.replace(
        config,
        epochs=-(-step // STEPS_PER_EPOCH),
        parallel=Parallel(1, 1, 1),
        checkpoint=Checkpointing(every_steps=step),
    )
    single_run = launch(one_worker, tmp_path)
    expected = weights(CheckpointStore(str(tmp_path / "runs"), single_run), step)
    assert largest_difference(weights(elastic, step), expected) < 1e-6
    assert largest_difference(weights(elastic, step - 1), expected) > 1e-5, "one step more or less shows"
    losses, expected_losses = (losses_until(step, run, tmp_path) for run in (elastic_run, single_run))
    assert list(losses) == list(range(1, step + 1)), "each step once, in order"
    # A sample that is left out or comes twice changes the mean over 60 in its third digit.
    assert losses == pytest.approx(expected_losses, abs=1e-5)


def losses_until(step: int, run: str, folder: Path) -> dict[int, float]:
    points = open_client(f"sqlite:///{folder}/mlflow.db").get_metric_history(run, "train/loss")
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points if point.step <= step}


def weights(store: CheckpointStore, step: int) -> dict[str, torch.Tensor]:
    with store.fetch(step) as folder:
        return read_model(folder / MODEL)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in other)


def test_a_gpu_that_torch_cannot_use_is_refused_before_a_run_exists(
    cluster: Cluster, config: Config, tmp_path: Path
) -> None:
    """Ray counts the GPU that it is told of; this machine has no driver, or its GPU tests see to the rest."""
    if torch.cuda.is_available():
        pytest.skip("torch can use the GPU of this machine")
    cluster.add_node(num_cpus=1, num_gpus=1)
    with pytest.raises(InputError, match=r"device is cuda: torch cannot use the GPUs of .*; use --device cpu"):
        launch(dataclasses.replace(config, device="cuda"), tmp_path)
    assert not (tmp_path / "runs").exists()
