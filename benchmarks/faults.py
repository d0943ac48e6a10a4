"""`python -m benchmarks.faults --data SHARDS [--runs 20] [--seed 0] [-- --FIELD VALUE ...]`: trainings with a fault.

Each training is the command as a user types it. The first is undisturbed, the others meet one fault each, at a random
moment after the first checkpoint. A command that ends early is resumed with `--resume`. In the end weights, metrics and
their steps must be those of the undisturbed training, bit for bit, and no process may be left. SHARDS have a short side
of 64 pixels.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from mlflow import MlflowClient

from benchmarks.mlflow_server import MlflowServer
from benchmarks.options import positive_int
from command_line import CommandParser
from training.checkpoint import MODEL, read_model
from training.cli import run_command
from training.launch.store import CheckpointStore

PROJECT = Path(__file__).resolve().parent.parent
MARK = "TWOTOWER_FAULTS"
"""Environment variable that all processes of a training inherit."""
CURVES = ("train/loss", "train/lr", "val/loss", "val/top1")
ATTEMPTS = 4
"""Commands of one training: a fault ends at most one of them."""
SMALL_DISK_MIB = 64
FIELDS = (
    *("--epochs", "2", "--checkpoint.every-steps", "20", "--device", "cpu", "--precision", "float32"),
    *("--parallel.data", "2", "--parallel.cpus-per-worker", "1", "--network.dropout", "0.2"),
)


class Training:
    """One training: its command, resumed where it ends early, and the stores that it writes to."""

    def __init__(self, folder: Path, data: Path, fields: Sequence[str]) -> None:
        self.folder, self.data, self.fields = folder, data, fields
        self.storage = folder / "runs"
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.storage.mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.server: MlflowServer | None = None
        self.log = (folder / "log").open("ab")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command: the recipe, or if there is a run already, its continuation."""
        chosen = (
            ["--resume", self.run_id] if self.has_run else ["tiny-imagenet", "--data", str(self.data), *self.fields]
        )
        environment = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, MARK: str(self.folder)}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "training.run", *chosen, "--storage", str(self.storage)]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        return self.process

    @property
    def client(self) -> MlflowClient:
        """A client of the training's store, which needs no server."""
        return MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    @property
    def has_run(self) -> bool:
        """Tell whether a command has come so far that its run has a checkpoint."""
        return bool(list(self.storage.glob("*/step-*")))

    @property
    def run_id(self) -> str:
        """Id of the MLflow run, after which its folder in the storage is named."""
        return next(self.storage.glob("*/step-*")).parent.name

    def wait_for_checkpoint(self) -> None:
        """Wait until the run has a checkpoint, or its command has ended."""
        while self.process is not None and self.process.poll() is None and not self.has_run:
            time.sleep(0.1)

    def family(self, name: str = "") -> list[psutil.Process]:
        """Return the living processes of this training whose command line contains `name`."""
        found = []
        for process in psutil.process_iter(["environ", "cmdline", "status"]):
            environment, line = process.info["environ"] or {}, " ".join(process.info["cmdline"] or [])
            if environment.get(MARK) == str(self.folder) and name in line and process.info["status"] != "zombie":
                found.append(process)
        return found

    @property
    def is_finished(self) -> bool:
        """Tell whether the run is, in MLflow: a command that is killed after that has nothing left to do."""
        return self.has_run and self.client.get_run(self.run_id).info.status == "FINISHED"

    def finish(self) -> None:
        """Wait for the command; resume as often as it ends early."""
        for _ in range(ATTEMPTS):
            assert self.process is not None
            if self.process.wait() == 0 or self.is_finished:
                return
            psutil.wait_procs(self.family(), timeout=60)
            self.start()
        said = (self.folder / "log").read_text(errors="replace")
        raise RuntimeError(f"a training has not ended after {ATTEMPTS} commands, which said:\n{said}")

    def outcome(self) -> tuple[dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
        """Return the last checkpoint's weights, and the points of the curves."""
        store = CheckpointStore(str(self.storage), self.run_id)
        step = store.newest()
        assert step is not None
        with store.fetch(step) as folder:
            weights = read_model(folder / MODEL)
        points = {key: self.client.get_metric_history(self.run_id, key) for key in CURVES}
        return weights, {key: [(point.step, point.value) for point in found] for key, found in points.items()}


def kill_worker(training: Training, rng: random.Random) -> None:
    """SIGKILL one of the workers."""
    rng.choice(training.family("RayTrainWorker") or training.family()).kill()


def kill_driver(training: Training, _rng: random.Random) -> None:
    """SIGKILL the command."""
    assert training.process is not None
    training.process.kill()


def kill_raylet(training: Training, _rng: random.Random) -> None:
    """SIGKILL Ray's daemon of the node."""
    for process in training.family("raylet/raylet"):
        process.kill()


def terminate(training: Training, _rng: random.Random) -> None:
    """SIGTERM to the command, as `ray job stop` or a machine that is taken back sends it."""
    assert training.process is not None
    training.process.terminate()


def truncate_newest(training: Training, _rng: random.Random) -> None:
    """SIGKILL the command, and cut the newest checkpoint off."""
    kill_driver(training, _rng)
    psutil.wait_procs(training.family(), timeout=60)
    newest = max(training.storage.glob("*/step-*")) / MODEL
    os.truncate(newest, newest.stat().st_size // 2)


def pause_worker(training: Training, rng: random.Random) -> None:
    """SIGSTOP a worker for ten seconds."""
    worker = rng.choice(training.family("RayTrainWorker") or training.family())
    worker.suspend()
    time.sleep(10)
    worker.resume()


def fill_disk(training: Training, _rng: random.Random) -> None:
    """Fill the disk of the checkpoints for fifteen seconds."""
    filler = training.storage / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    time.sleep(15)
    filler.unlink()


def restart_server(training: Training, _rng: random.Random) -> None:
    """SIGKILL the MLflow server, and start it again ten seconds later."""
    assert training.server is not None
    training.server.kill()
    time.sleep(10)
    training.server.start()


FAULTS: dict[str, Callable[[Training, random.Random], None]] = {
    "worker killed": kill_worker,
    "command killed": kill_driver,
    "raylet killed": kill_raylet,
    "SIGTERM": terminate,
    "newest checkpoint truncated": truncate_newest,
    "worker stopped for 10 s": pause_worker,
    "disk full for 15 s": fill_disk,
    "MLflow server down for 10 s": restart_server,
}


def disturbed(training: Training, fault: str, rng: random.Random, seconds: float) -> None:
    """Train with a fault at a random moment within `seconds` after the first checkpoint."""
    if fault == "disk full for 15 s":
        size = f"size={SMALL_DISK_MIB}M"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", training.storage], check=True)
    if fault == "MLflow server down for 10 s":
        training.server = MlflowServer(training.folder)
        training.server.start()
        training.uri = training.server.uri
    training.start()
    training.wait_for_checkpoint()
    time.sleep(rng.uniform(0, seconds))
    FAULTS[fault](training, rng)
    training.finish()


def clean_up(training: Training) -> list[str]:
    """End the server and unmount; return the command lines of processes that should not be there any more."""
    if training.server is not None:
        training.server.kill()
    _, left = psutil.wait_procs(training.family(), timeout=20)
    names = [" ".join(process.cmdline())[:80] for process in left if process.is_running()]
    for process in left:
        process.send_signal(signal.SIGKILL)
    subprocess.run(["umount", "-q", "-l", training.storage], check=False)
    return names


def main(arguments: Sequence[str]) -> None:
    """Train undisturbed, then with one fault each; print a line per training, and exit with 1 if one differs."""
    parser = CommandParser(prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards with a short side of 64 pixels")
    parser.add_argument(
        "--runs", type=positive_int, default=20, metavar="N", help="trainings with a fault (default: 20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments (default: 0)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="(default: all)")
    parser.add_argument("fields", nargs="*", metavar="--FIELD VALUE", help="fields of the trainings, after `--`")
    options = parser.parse_args(arguments)
    fields = [*FIELDS, *options.fields]
    rng, same = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        straight = Training(Path(folder, "undisturbed"), options.data.resolve(), fields)
        straight.start()
        straight.wait_for_checkpoint()
        began = time.monotonic()
        straight.finish()
        seconds = 0.9 * (time.monotonic() - began)
        weights, curves = straight.outcome()
        kinds = [options.faults[number % len(options.faults)] for number in range(options.runs)]
        for number, fault in enumerate(kinds):
            training = Training(Path(folder, str(number)), options.data.resolve(), fields)
            try:
                disturbed(training, fault, rng, seconds)
                found, points = training.outcome()
            finally:
                left = clean_up(training)
            equal = all(torch.equal(found[name], weights[name]) for name in weights)
            differing = [key for key in CURVES if points[key] != curves[key]]
            same += equal and not differing and not left
            print(
                f"{fault}: weights {'equal' if equal else 'DIFFER'}, "
                f"curves {'equal' if not differing else f'DIFFER in {differing}'}, {len(left)} processes left {left}",
                flush=True,
            )
    print(f"{same} of {options.runs} as the undisturbed training")
    if same < options.runs:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(run_command(main))
