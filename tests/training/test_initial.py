"""Starting from weights: what is taken over, what is drawn from the seed, and what is refused."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from commands import run_command
from torch import Tensor

from errors import InputError
from preprocess.manifest import read_manifest
from training.checkpoint import MODEL, PAGE, read_checkpoint, read_model
from training.config import Config, Network
from training.launch.initial import read_initial, resolve_init, source_config
from training.launch.resume import check_changes
from training.launch.store import INITIAL, CheckpointStore
from training.loop.state import build_state, capture_checkpoint
from training.loop.train import train_epoch
from training.models import build, make_network
from training.parallel.layout import Layout
from training.recipes import finetune
from training.run import parse
from training.tracking import CONFIG_NAME, create_run, open_client
from typed_json import to_json_values

CPU = Layout(torch.device("cpu"))


@pytest.fixture
def config(tiny_shards: Path, checkpoint: Path) -> Config:
    """The configuration of another training on the same data, from the checkpoint's weights."""
    base = read_checkpoint(checkpoint).config
    return dataclasses.replace(base, epochs=1, seed=7, init=str(checkpoint))


@pytest.fixture
def other_classes(tiny_shards: Path, tmp_path: Path) -> Path:
    """The same images, the last class of another name."""
    folder = tmp_path / "other-classes"
    shutil.copytree(tiny_shards, folder)
    page = json.loads((folder / "manifest.json").read_text())
    page["classes"][-1]["id"] = "scarlet-square"
    (folder / "manifest.json").write_text(json.dumps(page))
    return folder


def fresh(config: Config) -> dict[str, Tensor]:
    """Return the weights that a training without `init` starts from."""
    torch.manual_seed(config.seed)
    return make_network(config.architecture(), len(read_manifest(config.data).classes)).state_dict()


def start(config: Config) -> dict[str, Tensor]:
    """Return the weights that a training starts from."""
    initial = read_initial(config, Path("/nowhere"))
    assert initial is not None
    return build_state(config, CPU, 1, weights=initial.state).network.state_dict()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_starts_from_the_weights_of_a_checkpoint(
    config: Config, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_equal(start(config), read_model(checkpoint / MODEL))
    step = read_checkpoint(checkpoint).step
    assert capsys.readouterr().out == f"starts from the weights of {checkpoint}, step {step}\n"
    initial = read_initial(config, Path("/nowhere"))
    assert initial is not None
    digest = json.loads((checkpoint / PAGE).read_text())["sha256"][MODEL]
    assert initial.params == {"init_run_id": "run", "init_sha256": digest}


@pytest.mark.parametrize("kind", ["file", "relative", "uri", "half precision", "schema 2"])
def test_weights_come_from_a_file_a_uri_and_an_earlier_schema(
    config: Config, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    weights = read_model(checkpoint / MODEL)
    init, expected = str(checkpoint / MODEL), weights
    match kind:
        case "relative":
            init = "weights.pth"
            torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / init)
        case "uri":
            init = checkpoint.as_uri()
        case "half precision":
            init = str(tmp_path / "half.safetensors")
            half = {name: tensor.half() for name, tensor in weights.items()}
            safetensors.torch.save_file(half, init)
            expected = {name: tensor.float() for name, tensor in half.items()}
        case "schema 2":
            init = str(as_schema_2(checkpoint, tmp_path / "old"))
    initial = read_initial(dataclasses.replace(config, init=init), tmp_path)
    assert initial is not None
    assert_equal(initial.state, expected)
    assert ("init_run_id" in initial.params) == (kind in ("uri", "schema 2"))


def as_schema_2(checkpoint: Path, folder: Path) -> Path:
    """Write a checkpoint as it was before there were any within an epoch."""
    folder.mkdir()
    torch.save(read_model(checkpoint / MODEL), folder / "model.pt")
    page = json.loads((checkpoint / PAGE).read_text())
    del page["batch"], page["continuation"], page["config"]["checkpoint"], page["config"]["init"]
    digest = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    (folder / PAGE).write_text(json.dumps({**page, "schema": 2, "sha256": {"model.pt": digest}}))
    return folder


def test_with_other_classes_the_last_layer_is_that_of_a_fresh_network(
    config: Config, checkpoint: Path, four_classes: Path, other_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    differences = {
        four_classes: "the source has 3 classes, the data 4",
        other_classes: "the source has other classes than the data, red-square is not scarlet-square",
    }
    for data, difference in differences.items():
        moved = dataclasses.replace(config, data=str(data))
        expected = {name: tensor for name, tensor in read_model(checkpoint / MODEL).items() if name[:3] != "fc8"}
        expected |= {name: tensor for name, tensor in fresh(moved).items() if name[:3] == "fc8"}
        assert_equal(start(moved), expected)
        line = f"fc8 starts from new weights, drawn from seed 7: {difference}\n"
        assert capsys.readouterr().out.endswith(line)


def test_torchvision_s_1000_classes_give_way_to_the_data_s(config: Config, tmp_path: Path) -> None:
    network = build("alexnet-owt", 1000)
    torch.save(network.state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    changes = {"network": Network("alexnet-owt"), "crop": 64, "init": "alexnet-owt-7be5be79.pth"}
    initial = read_initial(dataclasses.replace(config, **changes), tmp_path)
    assert initial is not None
    assert set(network.state_dict()) - set(initial.state) == {"classifier.6.weight", "classifier.6.bias"}
    assert torch.equal(initial.state["classifier.4.weight"], network.state_dict()["classifier.4.weight"])


def change(state: dict[str, Tensor], name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    return {**{key: value for key, value in state.items() if key != name}, **({} if tensor is None else {name: tensor})}


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("conv1.weight", torch.ones(48, 3, 7, 7), r"conv1.weight is \(48, 3, 7, 7\) instead of \(48, 3, 5, 5\)"),
        ("fc8.weight", torch.ones(9, 500), r"fc8.weight is \(9, 500\) instead of \(9, 512\)"),
        ("fc8.bias", torch.ones(9), r"fc8.bias is \(9,\) instead of \(3,\)"),
        ("fc8.weight", None, "missing: fc8.weight;"),
        ("fc6.bias", None, "missing: fc6.bias;"),
        ("bn1.weight", torch.ones(48), "unknown: bn1.weight; use the recipe and the --network options"),
    ],
)
def test_everything_else_that_does_not_fit_is_refused_by_name(
    config: Config, checkpoint: Path, tmp_path: Path, name: str, tensor: Tensor | None, problem: str
) -> None:
    torch.save(change(read_model(checkpoint / MODEL), name, tensor), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"^init .*weights.pth is of another network: {problem}"):
        read_initial(dataclasses.replace(config, init=str(tmp_path / "weights.pth")), tmp_path)


@pytest.mark.parametrize(
    ("init", "problem"),
    [
        ("weights.pth", "init is '/.*/weights.pth': there is no such file or folder; use RUN_ID, RUN_ID:best, a check"),
        ("0" * 32 + ":third", "init is '0*:third': a run has no checkpoint 'third'; use RUN_ID:best or RUN_ID:last"),
        ("file:///nowhere/weights.pth", "init is 'file:///nowhere/weights.pth': there is no such file or folder"),
        ("nocloud://bucket/weights.pth", "init is 'nocloud://bucket/weights.pth': it cannot be read"),
        ("", "is not a checkpoint: it has no checkpoint.json"),
    ],
)
def test_a_source_that_does_not_exist_is_named(config: Config, tmp_path: Path, init: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_initial(dataclasses.replace(config, init=init), tmp_path)


def test_a_relative_path_starts_at_the_project(tmp_path: Path) -> None:
    assert resolve_init("weights.pth", tmp_path) == str(tmp_path / "weights.pth")
    for init in ("0" * 32, "a" * 32 + ":best", "s3://bucket/run/step-00000010"):
        assert resolve_init(init, tmp_path) == init
    with pytest.raises(InputError, match="this job runs in a copy of the project"):
        resolve_init("weights.pth", tmp_path / "_ray_pkg_0123")


def test_an_average_starts_from_the_weights(config: Config) -> None:
    decay = 0.5
    config = dataclasses.replace(
        config,
        batch_size=64,
        network=dataclasses.replace(config.network, dropout=0.0),
        optimizer=dataclasses.replace(config.optimizer, ema_decay=decay, warmup_epochs=0.0),
    )
    initial = read_initial(config, Path("/nowhere"))
    assert initial is not None
    state = build_state(config, CPU, 1, weights=initial.state)
    train_epoch(state, lambda *_: None, lambda *_: None)
    assert state.step == 1
    name = "conv1.weight"
    expected = decay * initial.state[name] + (1 - decay) * state.network.state_dict()[name]
    torch.testing.assert_close(state.eval_model.state_dict()[name], expected)


def test_a_run_is_a_source_with_its_best_or_last_checkpoint(
    config: Config, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(InputError, match=r"mlflow.db does not exist; set MLFLOW_TRACKING_URI"):
        read_initial(dataclasses.replace(config, init="0" * 32), tmp_path)
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    run_id = create_run(client, "twotower", "r", {})
    client.log_artifacts(run_id, str(checkpoint), "checkpoints/best")
    source = read_checkpoint(checkpoint).config
    client.log_dict(run_id, to_json_values(source), CONFIG_NAME)
    assert_equal(start(dataclasses.replace(config, init=f"{run_id}:best")), read_model(checkpoint / MODEL))
    with pytest.raises(InputError, match=f"run '{run_id}' has no artifact checkpoints/last"):
        read_initial(dataclasses.replace(config, init=run_id), tmp_path)
    with pytest.raises(InputError, match=f"run '{'0' * 32}' is not in the MLflow store"):
        read_initial(dataclasses.replace(config, init="0" * 32), tmp_path)
    assert source_config(f"{run_id}:best", tmp_path) == source
    assert parse(["finetune", "--init", run_id]).network == source.network


def test_fine_tuning_takes_the_network_of_its_source_unless_it_is_set(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_checkpoint(checkpoint).config
    config = parse(["finetune", "--init", str(checkpoint), "--epochs", "2", "--units", "grey"])
    assert (config.recipe, config.network, config.short_side, config.crop) == ("finetune", source.network, 64, None)
    assert (config.epochs, config.units, config.init) == (2, "grey", str(checkpoint))
    assert config.optimizer.freeze == {"conv1": 0}
    assert set(config.optimizer.layer_lr_scale) == {"fc8"}
    per_image = (tuned.optimizer.learning_rate / tuned.batch_size for tuned in (config, finetune(config), source))
    assert [rate * 64 for rate in per_image] == pytest.approx([0.013, 0.013, 0.04])
    (tmp_path / "weights.pth").touch()
    monkeypatch.chdir(tmp_path)
    of_file = parse(["finetune", "--init=weights.pth", "--optimizer.freeze"])
    assert (of_file.network, of_file.units, of_file.optimizer.freeze) == (Network("alexnet-owt"), "torchvision", {})
    with pytest.raises(InputError, match=r"init is None: the recipe finetune starts from trained weights; use --init"):
        parse(["finetune"])
    with pytest.raises(SystemExit) as helped:
        parse(["finetune", "--help"])
    assert helped.value.code == 0


def test_a_run_is_resumed_from_its_own_weights_and_no_others(
    config: Config, tmp_path: Path, four_classes: Path
) -> None:
    """Its source may be gone or another one by then."""
    config = dataclasses.replace(config, storage=str(tmp_path / "runs"), data=str(four_classes))
    with pytest.raises(InputError, match=r"init is 'other.pth': a run is resumed with its own"):
        check_changes(config, dataclasses.replace(config, init="other.pth"))
    initial = read_initial(config, tmp_path, "begun")
    assert initial is not None, "it was killed before it had its weights"
    store = CheckpointStore(config.storage, "begun")
    store.write_initial(initial.state)
    gone = dataclasses.replace(config, init=str(tmp_path / "gone.pth"))
    assert read_initial(gone, tmp_path, "begun") is None
    assert_equal(store.read_initial(), initial.state)
    (tmp_path / "runs" / "begun" / INITIAL).unlink()
    state = build_state(config, CPU, 1, weights=initial.state)
    state.step = 1
    store.write(capture_checkpoint(state, "begun", {}), 1)
    assert read_initial(gone, tmp_path, "begun") is None, "a checkpoint is enough"
    assert store.steps() == [1]


@pytest.mark.parametrize("is_local", [True, False], ids=["disk", "bucket"])
def test_weights_in_the_storage_are_complete_or_refused(tmp_path: Path, is_local: bool) -> None:
    store = CheckpointStore(str(tmp_path), "run")
    store._is_local = is_local
    assert not store.has_initial()
    state = {"weight": torch.arange(4.0)}
    store.write_initial(state)
    assert_equal(store.read_initial(), state)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [INITIAL]
    assert store.steps() == []
    content = (tmp_path / "run" / INITIAL).read_bytes()
    (tmp_path / "run" / INITIAL).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"run/{INITIAL} cannot be read"):
        store.read_initial()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"storage is .*/file/run: .*; use a folder or bucket that can be written"):
        CheckpointStore(str(tmp_path / "file"), "run").write_initial(state)


@pytest.mark.slow
def test_a_run_that_is_resumed_without_a_checkpoint_begins_again_from_the_same_weights(
    checkpoint: Path, four_classes: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    source = shutil.copytree(checkpoint, tmp_path / "source")
    fields = ["--epochs", 1, "--batch-size", 28, "--device", "cpu", "--parallel.cpus-per-worker", 1]
    fields += ["--data", four_classes, "--storage", tmp_path / "runs", "--optimizer.ema-decay", 0.5]
    trained = run_command("training.run", "finetune", "--init", source, *fields, env=environment)
    assert trained.returncode == 0, trained.stderr
    run_id = re.findall(r"^run (\w{32})", trained.stdout, re.MULTILINE)[0]
    params = open_client(environment["MLFLOW_TRACKING_URI"]).get_run(run_id).data.params
    assert (params["init"], params["init_run_id"]) == (str(source), "run")
    (folder,) = (tmp_path / "runs" / run_id).glob("step-*")
    first = read_model(folder / MODEL)
    before = read_model(source / MODEL)
    assert torch.equal(first["conv1.weight"], before["conv1.weight"]), "frozen"
    assert not torch.equal(first["conv2.weight"], before["conv2.weight"])
    shutil.rmtree(folder)
    shutil.rmtree(source)
    resumed = run_command("training.run", "--resume", run_id, env=environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "it begins again" in resumed.stdout
    assert_equal(read_model(folder / MODEL), first)
