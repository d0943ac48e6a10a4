"""A data set without val samples: trained without validation, and the last checkpoint is the best."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import run_command
from mlflow import MlflowClient

from errors import InputError
from training.checkpoint import read_checkpoint
from training.config import Config
from training.launch.resources import check_data_and_network
from training.launch.store import CheckpointStore
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import train
from training.parallel.layout import Layout
from training.recipes import RECIPES

CPU = Layout(torch.device("cpu"))


@pytest.fixture(params=["empty", "absent"])
def train_only(request: pytest.FixtureRequest, tiny_shards: Path, tmp_path: Path) -> Path:
    """The shards with an empty val split, as `--val-fraction 0` leaves it, or with none."""
    folder = shutil.copytree(tiny_shards, tmp_path / "train-only")
    page = json.loads((folder / "manifest.json").read_text())
    page["splits"]["val"] = {"samples": 0, "shards": []}
    if request.param == "absent":
        del page["splits"]["val"]
    (folder / "manifest.json").write_text(json.dumps(page))
    return folder


def make_config(data: Path) -> Config:
    base = RECIPES["tiny-imagenet"]()
    return dataclasses.replace(base, data=str(data), epochs=2, batch_size=16, precision="float32")


def test_the_weights_are_those_of_a_training_with_validation(
    train_only: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    logged: list[dict[str, float]] = []
    store = CheckpointStore(str(tmp_path), "run")
    best: list[int | None] = []

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        best.append(store.write(capture_checkpoint(state, "run", metrics), keep=1))

    state = build_state(make_config(train_only), CPU, 1)
    train(state, lambda metrics, _step: logged.append(metrics), save)
    validated = build_state(make_config(tiny_shards), CPU, 1)
    train(validated, lambda *_: None, lambda *_: None)
    for name, tensor in validated.network.state_dict().items():
        assert torch.equal(state.network.state_dict()[name], tensor), name
    assert [metrics["epoch"] for metrics in logged if "epoch" in metrics] == [1, 2]
    assert not any(name.startswith("val/") for metrics in logged for name in metrics)
    assert best == [state.step // 2, state.step], "the newest checkpoint at the end of an epoch is the best"
    assert store.steps() == [state.step]
    within = dataclasses.replace(capture_checkpoint(state, "run", {}).description, step=state.step + 1)
    store.write(dataclasses.replace(capture_checkpoint(state, "run", {}), description=within), keep=2)
    assert store.best() == state.step, "one within an epoch is not"


def test_a_schedule_that_goes_by_the_validation_error_is_refused(train_only: Path) -> None:
    config = make_config(train_only)
    check_data_and_network(config)
    optimizer = dataclasses.replace(config.optimizer, schedule="plateau", warmup_epochs=0.0)
    message = (
        f"^optimizer.schedule is 'plateau': it goes by the validation error, and {train_only} has no val samples; "
    )
    with pytest.raises(InputError, match=message):
        check_data_and_network(dataclasses.replace(config, optimizer=optimizer))


def test_a_split_without_samples_is_not_evaluated(checkpoint: Path, train_only: Path, tmp_path: Path) -> None:
    arguments = ("training.evaluate", "--checkpoint", checkpoint, "--data", train_only, "--output", tmp_path / "r")
    done = run_command(*arguments)
    assert done.returncode == 2
    assert done.stderr in (
        f"error: --split is val: {train_only} has no samples of it; use train\n",
        "error: split is 'val': data set 'tiny' has no such split; use train\n",
    )
    assert not (tmp_path / "r").exists()


def test_it_is_said_once_and_shown_everywhere(tmp_path: Path, raw_folder: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "shards"
    for name in ("blue-disc", "red-square"):
        shutil.copytree(raw_folder / "train" / name, raw / name)
    build = ("--input", raw, "--output", data, "--short-side", 64, "--val-fraction", 0, "--max-rejected", 1)
    assert run_command("preprocess.build_shards", *build).returncode == 0
    store = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {"MLFLOW_TRACKING_URI": store}
    fields = ("--epochs", 2, "--batch-size", 8, "--device", "cpu", "--parallel.data", 1, "--storage", tmp_path / "runs")
    done = run_command(
        *("training.run", "tiny-imagenet", "--data", data, *fields, "--register", "shapes"),
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validated") == 3
    assert f"not validated: {data} has no val samples; the last checkpoint is the best\n" in done.stdout
    assert re.search(r"^epoch 2/2: loss \d", done.stdout, re.MULTILINE)
    assert "epoch 2 of 2, not validated\n" in done.stdout
    assert re.search(r"^model \S+: the network of step \d+, not validated$", done.stdout, re.MULTILINE)
    assert "best checkpoint" not in done.stdout
    assert re.search(r"evaluate with: .* --data DIR$", done.stdout, re.MULTILINE)
    run_id = re.search(r"^run ([0-9a-f]{32})$", done.stdout, re.MULTILINE)[1]
    client = MlflowClient(store)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["checkpoint.best"] == run.data.tags["checkpoint.last"]
    assert read_checkpoint(Path(run.data.tags["checkpoint.best"])).epoch == 2
    assert "**Finished** after 2 of 2 epochs, without validation." in run.data.tags["mlflow.note.content"]
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["raw/train"]
    assert client.get_model_version("shapes", "1").description.endswith("on raw: not validated")
    listed = run_command("training.runs", env={**os.environ, **environment})
    assert re.search(rf"^{run_id} +tiny-imagenet +finished +2/2 ", listed.stdout, re.MULTILINE), listed.stdout
