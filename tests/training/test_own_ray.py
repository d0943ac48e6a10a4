"""The Ray that a training starts for itself, and what is found before it is started."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from commands import PROJECT

from errors import InputError
from training.config import Parallel
from training.launch.launcher import launch
from training.recipes import RECIPES

UV = PROJECT / ".uv" / "bin" / "uv"
DASHBOARD_PORT = 8265
"""Of `cluster.local`, and of any Ray with a dashboard."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": Parallel(data=64)}, "parallel.data 64 x parallel.model 1 needs 64 cpu workers; the cluster has"),
        ({"batch_size": 5, "parallel": Parallel(data=2)}, "batch_size 5 cannot be divided among parallel.data 2"),
        ({"device": "cuda"}, "needs 1 cuda workers; the cluster has 2 CPU cores and 0 GPUs"),
        ({"storage": "/dev/null/runs"}, "storage is /dev/null/runs: no file can be written there .Not a directory"),
        ({"storage": "s4://bucket/runs"}, "storage is s4://bucket/runs: no file can be written there .Unrecognized"),
    ],
)
def test_what_needs_no_cluster_is_found_before_ray_starts(
    four_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests of this process may have joined one
    monkeypatch.setattr("training.launch.launcher.joined_ray", lambda: pytest.fail("Ray is started"))
    monkeypatch.setattr("training.launch.ray_cluster.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    config = dataclasses.replace(RECIPES["tiny-imagenet"](), data=str(four_classes), batch_size=4, device="cpu")
    with pytest.raises(InputError, match=message):
        launch(dataclasses.replace(config, **changes), tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_it_listens_on_loopback_only_and_leaves_other_rays_alone(four_classes: Path, tmp_path: Path) -> None:
    """Two workers, while another Ray runs on the machine. Started by `uv run`, they have the command's environment."""
    ray.init("local", num_cpus=1, logging_level="ERROR")
    try:
        command = [UV, "run", "--no-project", "--offline", "--python", sys.executable] if UV.exists() else []
        command += [sys.executable, "-m", "training.run", "tiny-imagenet", "--data", four_classes, "--epochs", "4"]
        command += ["--batch-size", "4", "--parallel.data", "2", "--parallel.cpus-per-worker", "1", "--device", "cpu"]
        command += ["--optimizer.learning-rate", "0.001", "--storage", tmp_path / "runs"]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        environment.pop("RAY_ADDRESS", None)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        training = subprocess.Popen(command, cwd=PROJECT, env=environment, **pipes)
        heard = dict[str, set[tuple[str, int]]]()
        names = set[str]()
        while training.poll() is None:
            for process in descendants(training.pid):
                with contextlib.suppress(psutil.Error):
                    names.add(process.name())
                    for address in listeners(process):
                        heard.setdefault(process.name(), set()).add(address)
            time.sleep(0.5)
        output, errors = training.communicate()
    finally:
        ray.shutdown()
    assert training.returncode == 0, errors
    assert "Traceback" not in output + errors
    assert {"raylet", "gcs_server"} <= set(heard), "it was looked at while it trained"
    assert any(name.startswith("ray::RayTrainWorker") for name in heard)
    assert "uv" not in names, "workers are started by the interpreter of the command"
    addresses = {address for found in heard.values() for address in found}
    assert {ip.removeprefix("::ffff:") for ip, _ in addresses} == {"127.0.0.1"}, heard
    assert DASHBOARD_PORT not in {port for _, port in addresses}


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def listeners(process: psutil.Process) -> list[tuple[str, int]]:
    """Return the addresses that a process listens on."""
    return [connection.laddr for connection in process.net_connections("tcp") if connection.status == "LISTEN"]
