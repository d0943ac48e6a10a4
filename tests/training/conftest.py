"""Fixtures of the training tests: shards for several devices, and a trained network."""

import dataclasses
import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from training.launch.ray_environment import set_ray_environment

if TYPE_CHECKING:
    from training.load_model import LoadedModel

set_ray_environment()  # Ray reads it when a test imports it


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_processor() -> Iterator[None]:
    """Let precision `auto` be float32 in this process: with AMX it would be bfloat16, and references are float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loop.precision._cpu_flags", set)
        yield


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Let forked children not collect what this process has left, such as DALI's pipelines, whose threads they lack."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an MLflow store with its tables, which take seconds to make."""
    from training.tracking import open_client

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(f"sqlite:///{file}", create=True)
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The address of an MLflow store of its own."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def checkpoint(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a few epochs: right about most of the val split, not about all of it."""
    import torch

    from training.checkpoint import write_checkpoint
    from training.loop.state import TrainState, build_state, capture_checkpoint
    from training.loop.train import train
    from training.parallel.layout import Layout
    from training.recipes import RECIPES

    folder = tmp_path_factory.mktemp("checkpoint")
    base = RECIPES["tiny-imagenet"]()
    config = dataclasses.replace(
        base,
        data=str(tiny_shards),
        epochs=3,
        batch_size=8,
        label_smoothing=0.0,
        network=dataclasses.replace(base.network, dropout=0.3),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=0.005),
    )

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        if state.epoch == config.epochs:
            write_checkpoint(folder, capture_checkpoint(state, "run", metrics))

    train(build_state(config, Layout(torch.device("cpu")), 1), lambda _metrics, _step: None, save)
    return folder


@pytest.fixture
def untrained(tiny_shards: Path) -> Callable[..., "LoadedModel"]:
    """Make a network with random weights for the classes of `tiny_shards`, by name and fields of its configuration."""
    import torch

    from pipeline.views import read_mean_image
    from training.checkpoint import describe_data
    from training.config import Config, Network
    from training.load_model import LoadedModel
    from training.models import make_network

    def make(name: str = "alexnet-small", **fields: Any) -> LoadedModel:
        config = Config(**{"recipe": "own", "short_side": 64, "epochs": 1, "network": Network(name)} | fields)
        data = dataclasses.replace(describe_data(str(tiny_shards)), short_side=config.short_side)
        torch.manual_seed(0)
        network = make_network(config.architecture(), len(data.classes)).eval()
        mean = read_mean_image(tiny_shards / "mean.npy", 64) if config.mean == "image" else None
        return LoadedModel(network, config, data, mean, torch.device("cpu"), f"untrained {name}", None, name, "ab" * 32)

    return make


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int | str | None, str, str]]:
    """Run a command's main in this process, in an empty folder; returns exit code, stdout, stderr."""
    from training.cli import run_command as run_in_process

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def run(main: Callable[..., None], *arguments: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        try:
            code: int | str | None = run_in_process(main)
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
