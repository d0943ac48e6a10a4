"""Real Ray Train runs, few and shared: a minute each on two cores."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from commands import PROJECT, run_command
from mlflow import MlflowClient
from mlflow.entities import Run

from errors import InputError
from training.checkpoint import MODEL, read_checkpoint, read_model
from training.config import Checkpointing, Config, Network, Parallel
from training.launch.launcher import TrainingError, launch
from training.launch.resources import Resources, resolve_resources
from training.recipes import RECIPES
from training.tracking import open_client, tracking_uri

EPOCHS = 4
STEPS_PER_EPOCH = 35


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for stores, and one Ray for all runs; it counts more cores than there are, for meshes of four."""
    folder = tmp_path_factory.mktemp("project")
    ray.init("local", num_cpus=4, logging_level="ERROR")
    yield folder
    ray.shutdown()


@pytest.fixture(scope="module")
def config(four_classes: Path) -> Config:
    base = RECIPES["tiny-imagenet"]()
    return dataclasses.replace(
        base,
        data=str(four_classes),
        epochs=EPOCHS,
        batch_size=4,
        log_every=2,
        device="cpu",
        precision="float32",
        parallel=Parallel(data=2, cpus_per_worker=1),
        checkpoint=Checkpointing(every_steps=10),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=0.002),
        network=dataclasses.replace(base.network, dropout=0.2),
    )


def client_of(project: Path) -> MlflowClient:
    return open_client(tracking_uri(project))


def only_run_since(project: Path, known: set[str]) -> Run:
    client = client_of(project)
    experiment = client.get_experiment_by_name("twotower")
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_id not in known]
    assert len(runs) == 1, "one MLflow run per training"
    return runs[0]


def artifact(project: Path, run_id: str, path: str) -> Path:
    return Path(client_of(project).download_artifacts(run_id, path))


@pytest.fixture(scope="module")
def undisturbed(config: Config, project: Path) -> str:
    return launch(dataclasses.replace(config, register="shapes"), project)


def test_metrics_and_artifacts_are_the_contract_s(config: Config, project: Path, undisturbed: str) -> None:
    client = client_of(project)
    run = client.get_run(undisturbed)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    contract = {f"train/{name}" for name in ("loss", "lr", "images_per_second", "data_wait")}
    assert {key for key in run.data.metrics if not key.startswith("system/")} == contract | {"val/loss", "val/top1"}
    params = run.data.params
    assert (params["recipe"], params["parallel.data"], params["optimizer.momentum"]) == ("tiny-imagenet", "2", "0.9")
    assert {"git_commit", "manifest_sha256", "version.torch", "version.ray"} <= set(params)
    steps = [point.step for point in client.get_metric_history(undisturbed, "val/top1")]
    assert steps == [STEPS_PER_EPOCH * epoch for epoch in range(1, EPOCHS + 1)]
    assert {a.path for a in client.list_artifacts(undisturbed)} == {"checkpoints", "config.json", "pictures"}
    last = read_checkpoint(artifact(project, undisturbed, "checkpoints/last"))
    best = read_checkpoint(artifact(project, undisturbed, "checkpoints/best"))
    assert (last.epoch, last.step, last.run_id) == (EPOCHS, EPOCHS * STEPS_PER_EPOCH, undisturbed)
    top1 = [point.value for point in client.get_metric_history(undisturbed, "val/top1")]
    assert best.metrics["val/top1"] == max(top1)
    assert last.metrics["val/top1"] == top1[-1]
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{undisturbed}'")
    assert (model.name, model.status, model.tags["step"]) == ("model", "READY", str(best.step))
    version = client.get_model_version("shapes", "1")
    assert (version.source, version.tags["val/top1"]) == (model.artifact_location, f"{max(top1):.4f}")


def kill_a_worker_in_the_second_epoch(project: Path, known: set[str], killed: list[int]) -> None:
    """Wait until a point of the second epoch is logged, then kill one of the workers as the kernel would."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not killed:
        for folder in (project / "runs").glob("*"):
            if folder.name in known:
                continue
            points = client_of(project).get_metric_history(folder.name, "train/loss")
            if any(point.step > STEPS_PER_EPOCH for point in points):
                # Of this process's own Ray: others may train on the same machine.
                family = psutil.Process().children(recursive=True)
                workers = [process for process in family if "RayTrainWorker" in str(process.cmdline())]
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(max(point.step for point in points))
        time.sleep(0.05)


def test_a_killed_worker_changes_nothing(config: Config, project: Path, undisturbed: str) -> None:
    known, killed = {path.name for path in (project / "runs").glob("*")}, list[int]()
    killer = threading.Thread(target=kill_a_worker_in_the_second_epoch, args=(project, known, killed))
    killer.start()
    run_id = launch(dataclasses.replace(config, epochs=EPOCHS), project)
    killer.join()
    assert killed
    assert killed[0] <= EPOCHS * STEPS_PER_EPOCH - STEPS_PER_EPOCH, "killed well before the end"
    assert only_run_since(project, known).info.run_id == run_id
    client = client_of(project)
    assert client.get_run(run_id).info.status == "FINISHED"
    for key in ("train/loss", "val/loss"):
        one, other = (client.get_metric_history(run, key) for run in (undisturbed, run_id))
        assert [p.step for p in one] == [p.step for p in other], "no point twice, none missing"
    states = [read_model(artifact(project, run, "checkpoints/last") / MODEL) for run in (undisturbed, run_id)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), "same seed, same weights"
    assert read_checkpoint(artifact(project, run_id, "checkpoints/last")).epoch == EPOCHS


@pytest.mark.slow
def test_a_killed_command_is_resumed_in_its_run_and_changes_nothing(
    config: Config, project: Path, undisturbed: str, four_classes: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "training.run", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=PROJECT, env=environment, start_new_session=True, **pipes)

    fields = ["--epochs", EPOCHS, "--batch-size", 4, "--log-every", 2, "--device", "cpu", "--precision", "float32"]
    fields += ["--parallel.data", 2, "--parallel.cpus-per-worker", 1, "--network.dropout", 0.2]
    fields += ["--optimizer.learning-rate", 0.002, "--checkpoint.every-steps", 10, "--storage", tmp_path / "runs"]
    killed = run("tiny-imagenet", "--data", four_classes, *fields)
    wait_for_checkpoint(tmp_path / "runs", killed, step=STEPS_PER_EPOCH + 10)
    (family,) = [psutil.Process(killed.pid)]
    children = family.children(recursive=True)
    killed.kill()
    killed.communicate()
    run_id = only_run_since(tmp_path, set()).info.run_id
    assert client_of(tmp_path).get_run(run_id).info.status == "RUNNING"
    evaluated = run_command(
        *("training.evaluate", "--run", run_id, "--data", four_classes, "--output", tmp_path / "report"),
        env=environment,
    )
    assert (evaluated.returncode, "on 55 samples of val" in evaluated.stdout) == (0, True), evaluated.stderr
    refused = run("--resume", run_id, "--optimizer.learning-rate", 0.1)
    assert (refused.communicate()[1], refused.returncode) == (
        "error: optimizer.learning_rate is 0.1: a run is resumed with its own, 0.002; leave it out\n",
        2,
    )
    psutil.wait_procs(children, timeout=60)
    resumed, rival = run("--resume", run_id), run("--resume", run_id)
    ends = [(*process.communicate(timeout=300), process.returncode) for process in (resumed, rival)]
    assert sorted(code for *_, code in ends) == [0, 2], ends
    (error,) = [err for _, err, code in ends if code == 2]
    assert f"run {run_id} is being" in error
    ((output, complaints),) = [(out, err) for out, err, code in ends if code == 0]
    assert complaints == ""
    first, second, *epochs = output.partition(f"\nrun {run_id}\n")[0].splitlines()
    assert first.startswith(f"run {run_id} goes on from its checkpoint of step ")
    assert second.startswith(f"MLflow run {run_id} in ")
    assert {line.partition(":")[0] for line in epochs if "step" not in line} == {
        f"epoch {n}/{EPOCHS}" for n in (2, 3, 4)
    }
    assert all(line.startswith(("epoch ", "model ")) for line in epochs), "no line of Ray's own"
    assert client_of(tmp_path).get_run(run_id).info.status == "FINISHED"
    for key in ("train/loss", "val/loss"):
        one = client_of(project).get_metric_history(undisturbed, key)
        other = client_of(tmp_path).get_metric_history(run_id, key)
        assert [(p.step, p.value) for p in one] == [(p.step, p.value) for p in other]
    states = [
        read_model(artifact(folder, run, "checkpoints/last") / MODEL)
        for folder, run in ((project, undisturbed), (tmp_path, run_id))
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    again = run("--resume", run_id)
    assert f"run {run_id} has completed {EPOCHS}; use --epochs with more" in again.communicate()[1]
    assert again.returncode == 2
    client_of(tmp_path).set_terminated(run_id, "KILLED")  # as by a signal while the model was logged
    last = run("--resume", run_id)
    assert f"run {run_id} has completed its {EPOCHS} epochs, but was ended before" in last.communicate()[0]
    assert (last.returncode, client_of(tmp_path).get_run(run_id).info.status) == (0, "FINISHED")


def wait_for_checkpoint(storage: Path, process: subprocess.Popen[str], step: int) -> None:
    while not any(int(path.name[5:]) >= step for path in storage.glob("*/step-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"network": Network("alexnet-owt"), "crop": 64}], ids=["towers", "hybrid"])
def test_a_network_on_two_workers(config: Config, project: Path, undisturbed: str, changes: dict[str, Any]) -> None:
    # Five steps: rounding grows with every one, and tens of them part two equal trainings visibly.
    config = dataclasses.replace(config, **changes)
    quiet = dataclasses.replace(
        config,
        epochs=1,
        batch_size=28,
        network=dataclasses.replace(config.network, dropout=0.0),
        parallel=Parallel(1, 2, 1),
    )
    shared = launch(quiet, project)
    replicas = launch(dataclasses.replace(quiet, parallel=Parallel(2, 1, 1)), project)
    one, other = (read_model(artifact(project, run, "checkpoints/last") / MODEL) for run in (shared, replicas))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_diverging_training_fails_and_says_why(config: Config, project: Path, undisturbed: str) -> None:
    absurd = dataclasses.replace(config.optimizer, learning_rate=1e10, warmup_epochs=0.0)
    with pytest.raises(TrainingError, match=r"the training loss is (nan|inf)"):
        launch(dataclasses.replace(config, optimizer=absurd), project)
    experiment = client_of(project).get_experiment_by_name("twotower")
    assert len(client_of(project).search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_saves_before_it_stops(
    four_classes: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    command = [
        *["-m", "training.run", "tiny-imagenet", "--epochs", "1000", "--batch-size", "4", "--data"],
        str(four_classes),
    ]
    # At the recipe's rate, made for batches of 64, batches of 4 diverge or not as the processor rounds.
    command += ["--storage", str(tmp_path / "runs"), "--device", "cpu", "--optimizer.learning-rate", "0.001"]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=PROJECT,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A test run that was itself started with `&` would hand down that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not list(tmp_path.glob("runs/*/step-*")):
            assert process.poll() is None
            time.sleep(0.1)
        before = max(path.name for path in tmp_path.glob("runs/*/step-*"))
        process.send_signal(signum)
        _, error = process.communicate(timeout=120)
        assert process.returncode == code, error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    run = only_run_since(tmp_path, set())
    assert run.info.status == "KILLED"
    last = read_checkpoint(artifact(tmp_path, run.info.run_id, "checkpoints/last"))
    assert last.step > int(before.removeprefix("step-")), "saved before it stopped"
    assert f"resume with: python -m training.run --resume {run.info.run_id}\n" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/nowhere"}, "data folder /nowhere does not exist"),
        ({"short_side": 32, "crop": 28}, "has a short side of 64 pixels; recipe tiny-imagenet is for 32"),
        ({"batch_size": 5}, "batch_size 5 cannot be divided among parallel.data 2 replicas; use a multiple of 2"),
        ({"batch_size": 4096}, r"batch_size 4096 is more than the 14\d train samples"),
        ({"parallel": Parallel(data=3, model=2)}, "needs 6 cpu workers; the cluster has 4 CPU cores"),
        ({"parallel": Parallel(data=2, cpus_per_worker=3)}, "parallel.cpus_per_worker 3 for 2 workers"),
        ({"parallel": Parallel(model=4)}, "parallel.model 4 is more than the 2 tower"),
        (
            {"network": Network("alexnet-owt"), "crop": 64, "parallel": Parallel(model=3)},
            "parallel.model 3 does not divide the 4096 units",
        ),
        (
            {"network": Network("alexnet-owt"), "crop": 64, "batch_size": 6, "parallel": Parallel(2, 2)},
            "batch_size 6 cannot be divided among parallel.data 2 x parallel.model 2 devices; use a multiple of 4",
        ),
        ({"device": "cuda"}, "the cluster has 4 CPU cores and 0 GPUs"),
        ({"compile": "graphs", "parallel": Parallel(data=1)}, "compile is 'graphs': it needs a GPU"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_run_exists(
    config: Config, project: Path, changes: dict[str, object], message: str
) -> None:
    before = set((project / "runs").glob("*"))
    with pytest.raises(InputError, match=message):
        launch(dataclasses.replace(config, **changes), project)
    assert set((project / "runs").glob("*")) == before


@pytest.mark.parametrize(("nodes", "groups"), [([3, 1], 1), ([1, 1, 1, 1], 0), ([3, 3], 2), ([4], 2)])
def test_peers_must_find_a_node_to_share(config: Config, nodes: list[int], groups: int) -> None:
    """The towers of one network on two nodes would send every activation over the network between them."""
    resources = [{"CPU": 16.0, "GPU": float(gpus)} for gpus in nodes]
    asked = dataclasses.replace(config, device="cuda", parallel=Parallel(2, 2, 1))
    if groups == 2:
        assert resolve_resources(asked, resources) == Resources("cuda", (2,), 2, 1)
        return
    with pytest.raises(InputError, match=f"the nodes have room for {groups} groups of parallel.model 2 cuda"):
        resolve_resources(asked, resources)


def test_an_elastic_training_skips_widths_that_do_not_divide_the_batch(config: Config) -> None:
    asked = dataclasses.replace(config, batch_size=12, parallel=Parallel("2..5", 1, 1))
    resources = resolve_resources(asked, [{"CPU": 2.0}])
    assert resources == Resources("cpu", (2, 3, 4), 1, 1)
    assert resources.num_workers == (2, 4)
    assert resources.params(asked)["parallel.data"] == "2..5"
    with pytest.raises(InputError, match="needs 2 cpu workers; the cluster has 1 CPU cores"):
        resolve_resources(asked, [{"CPU": 1.0}])
    with pytest.raises(InputError, match=r"batch_size 12 cannot be divided among parallel\.data 7\.\.11"):
        resolve_resources(dataclasses.replace(asked, parallel=Parallel("7..11")), [{"CPU": 16.0}])


@pytest.mark.parametrize("data", ["3..1", "0..2", "many", "2..", 0])
def test_a_number_of_replicas_is_a_number_or_a_range(data: int | str) -> None:
    with pytest.raises(InputError, match=f"parallel.data is {data!r}; use a whole number from 1"):
        Parallel(data)


def test_an_elastic_training_has_no_cache(config: Config) -> None:
    """The batches from a cache depend on the number of replicas: they would change in the middle of an epoch."""
    with pytest.raises(InputError, match=r"cache is 'host': .* parallel.data 1\.\.2"):
        dataclasses.replace(config, cache="host", parallel=Parallel("1..2"))


def test_a_cluster_that_may_grow_is_asked_for_what_is_named(config: Config) -> None:
    """An autoscaler brings nodes for it; a number that is left open goes by the nodes that are there."""
    asked = dataclasses.replace(config, device="cuda", parallel=Parallel(4))
    assert resolve_resources(asked, [{"CPU": 2.0}], may_grow=True) == Resources("cuda", (4,), 1, 1)
    with pytest.raises(InputError, match="needs 4 cuda workers; the cluster has 2 CPU cores and 0 GPUs"):
        resolve_resources(asked, [{"CPU": 2.0}])
    with pytest.raises(InputError, match="needs 1 cuda workers"):
        resolve_resources(dataclasses.replace(asked, parallel=Parallel()), [{"CPU": 2.0}], may_grow=True)
