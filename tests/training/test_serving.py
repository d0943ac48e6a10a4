"""The MLflow model of a training, loaded as a machine without this project loads it."""

import base64
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from errors import InputError
from pipeline.images import load_images
from training.checkpoint import Checkpoint, read_checkpoint
from training.config import Config
from training.load_model import LoadedModel, load_checkpoint
from training.predict import predict, read_sample
from training.serving.logged_model import check_registry, publish
from training.serving.mlflow_model import save_model
from training.tracking import create_run, open_client

LOADER = """
import json, sys
import mlflow.pyfunc, mlflow.pytorch, torch

model = mlflow.pyfunc.load_model(sys.argv[1])
network = mlflow.pytorch.load_model(sys.argv[1])
print(json.dumps({
    "predictions": model.predict([open(path, "rb").read() for path in sys.argv[2:]]),
    "logits": list(network(torch.zeros(5, 3, 56, 56)).shape),
    "modules": sorted(sys.modules),
}))
"""


@pytest.fixture(autouse=True)
def restored_path() -> Iterator[None]:
    """Undo what loading a model with its code does: that code would go before the project's own."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def photos(raw_folder: Path) -> list[Path]:
    return sorted(raw_folder.glob("val/*/*_00[0-4].JPEG")) + sorted(raw_folder.glob("train/*/*.png"))


def load_elsewhere(folder: Path, model: str, photos: list[Path], **variables: str) -> dict:
    """Load and use a model in a process that has neither this project nor pickle."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOADER, model, *map(str, photos)],
        cwd=folder,
        env={**environment, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_float32(trained: LoadedModel) -> LoadedModel:
    return dataclasses.replace(trained, config=dataclasses.replace(trained.config, precision="float32"))


@pytest.mark.parametrize("fields", [{}, {"crop": 47, "units": "unit-std"}, {"units": "torchvision"}, {"mean": "image"}])
def test_the_input_is_that_of_an_evaluation(
    fields: dict[str, object], photos: list[Path], untrained: Callable[..., LoadedModel]
) -> None:
    trained = untrained("lenet5", **fields)
    expected = load_images(
        [read_sample(path, trained) for path in photos],
        short_side=64,
        color_stats=trained.data.color_stats,
        crop=trained.config.image_size,
        units=trained.config.units,
        mean_image=trained.mean_image,
    )
    found = np.stack([trained.preprocessing(path.read_bytes()) for path in photos])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-4)


def test_a_model_is_usable_without_the_project(checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    trained = in_float32(load_checkpoint(checkpoint, torch.device("cpu"), "checkpoint"))
    save_model(trained, tmp_path / "model", photos[0].read_bytes())
    found = load_elsewhere(tmp_path, str(tmp_path / "model"), photos)
    expected = predict(trained, [read_sample(path, trained) for path in photos])
    for best, guesses in zip(found["predictions"], expected, strict=True):
        assert [entry["name"] for entry in best] == [name for name, _ in guesses]
        np.testing.assert_allclose([entry["probability"] for entry in best], [p for _, p in guesses], atol=1e-5)
        assert all(entry["id"] == entry["name"] for entry in best)
    assert found["logits"] == [5, 3]
    assert not {"nvidia.dali", "ray", "training.models", "training.config"} & set(found["modules"])


def test_requests_and_files_that_are_no_images(checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    trained = load_checkpoint(checkpoint, torch.device("cpu"), "checkpoint")
    save_model(trained, tmp_path / "model", photos[0].read_bytes())
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    answer = model.predict(model.input_example)
    assert answer == model.predict(photos[0].read_bytes())
    assert answer == model.predict([base64.b64encode(photos[0].read_bytes())]), "as the server passes on `inputs`"
    assert len(model.predict([path.read_bytes() for path in photos] * 6)) == 6 * len(photos)
    bitmap = io.BytesIO()
    Image.open(photos[0]).save(bitmap, "BMP")
    assert answer[0][0]["name"] == model.predict([bitmap.getvalue()])[0][0]["name"]
    with pytest.raises(MlflowException, match="image 1 cannot be used: not an image in a known format"):
        model.predict([photos[0].read_bytes(), b"hello"])


@pytest.fixture
def finished(checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> tuple[MlflowClient, str, Config]:
    """A store with a run as a training leaves it: its metrics, and a checkpoint in its storage."""
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    saved = read_checkpoint(checkpoint)
    run_id = create_run(client, "twotower", "tiny", {"epochs": saved.epoch})
    log_metrics(client, run_id, saved)
    shutil.copytree(checkpoint, tmp_path / "runs" / run_id / f"step-{saved.step:08d}")
    return client, run_id, dataclasses.replace(saved.config, storage=str(tmp_path / "runs"))


def log_metrics(client: MlflowClient, run_id: str, saved: Checkpoint) -> None:
    for name, value in saved.metrics.items():
        client.log_metric(run_id, name, 0.0, step=saved.step - 1)
        client.log_metric(run_id, name, value, step=saved.step)


@pytest.mark.slow
def test_a_run_has_a_model_and_the_registry_its_versions(
    finished: tuple[MlflowClient, str, Config],
    checkpoint: Path,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client, run_id, config = finished
    top1 = read_checkpoint(checkpoint).metrics["val/top1"]
    check_registry(client, "shapes")
    for version in ("1", "2"):
        assert publish(client, run_id, dataclasses.replace(config, register="shapes")) is None
        assert f"val/top1 {top1:.4f}\nregistered as models:/shapes/{version}\n" in capsys.readouterr().out
    check_registry(client, "shapes")
    for version in client.search_model_versions("name = 'shapes'"):
        assert (version.run_id, version.tags["val/top1"]) == (run_id, f"{top1:.4f}")
    (experiment,) = {client.get_run(run_id).info.experiment_id}
    newest, oldest = client.search_logged_models([experiment])
    assert newest.creation_timestamp > oldest.creation_timestamp
    assert {metric.key: metric.value for metric in newest.metrics} == read_checkpoint(checkpoint).metrics
    assert len(client.get_metric_history(run_id, "val/top1")) == 2, "no point twice"
    for uri in (f"runs:/{run_id}/model", "models:/shapes/2"):
        found = load_elsewhere(tmp_path, uri, photos, MLFLOW_TRACKING_URI=client.tracking_uri)
        assert [best[0]["name"] for best in found["predictions"]] == [
            best[0][0] for best in predict_all(checkpoint, photos)
        ]


def predict_all(checkpoint: Path, photos: list[Path]) -> list[list[tuple[str, float]]]:
    trained = in_float32(load_checkpoint(checkpoint, torch.device("cpu"), "checkpoint"))
    return predict(trained, [read_sample(path, trained) for path in photos])


@pytest.mark.slow
def test_a_model_that_cannot_be_kept_costs_a_line_not_the_training(
    finished: tuple[MlflowClient, str, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, run_id, config = finished
    shutil.rmtree(tmp_path / "mlartifacts", ignore_errors=True)
    (tmp_path / "mlartifacts").write_text("a file where the artifacts would go")
    assert publish(client, run_id, config) is None
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"warning: run {run_id} has no model: ")
    assert client.search_logged_models([client.get_run(run_id).info.experiment_id])[0].status == "FAILED"
    assert "has no model for shapes" in (publish(client, run_id, dataclasses.replace(config, register="shapes")) or "")


@pytest.mark.slow
def test_a_name_that_the_registry_does_not_take_is_refused(finished: tuple[MlflowClient, str, Config]) -> None:
    with pytest.raises(InputError, match="register is 'a/b': Invalid model name 'a/b'"):
        check_registry(finished[0], "a/b")
