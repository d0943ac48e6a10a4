"""The life of one training: checks, MLflow run, Ray Train, artifacts."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import ray
import torch
from mlflow import MlflowClient

from object_store import join
from preprocess.manifest import manifest_digest, read_manifest
from training import tracking
from training.checkpoint import MODEL, read_model
from training.cli import resolve
from training.config import Config
from training.launch.gpu_check import check_gpus
from training.launch.initial import InitialWeights, read_initial, resolve_init
from training.launch.ray_cluster import joined_ray, own_resources
from training.launch.ray_environment import starts_own_ray
from training.launch.ray_train import fit
from training.launch.resources import Resources, check_data_and_network, resolve_resources
from training.launch.resume import check_resumable
from training.launch.store import CheckpointStore, check_storage
from training.loop.compile import check_compiler
from training.report.pictures import kernels_png
from training.serving.logged_model import check_registry, publish
from training.terminal.closing import closing_lines
from training.terminal.display import Display
from training.tracking.claim import claimed


class TrainingError(RuntimeError):
    """The training ended before its last epoch."""


def launch(config: Config, project: Path, resumed: str | None = None) -> str:
    """Train as configured on a Ray cluster and return the id of the MLflow run.

    Args:
        config: relative paths in it start at `project`.
        project: folder of the default stores.
        resumed: id of the run to go on with; None: a new one.

    Raises:
        InputError: data, network, batch, resources or stores do not fit; or the run to resume is finished, or another
            process trains it. Nothing has been changed then.
        TrainingError: the training failed, or its metrics could not be logged, or its network not be registered.
        KeyboardInterrupt: it was interrupted.
    """
    config = replace(
        config,
        data=resolve("data", config.data, project, must_exist=True),
        staging=None if config.staging is None else resolve("staging", config.staging, project),
        storage=resolve("storage", config.storage, project),
        init=None if config.init is None else resolve_init(config.init, project),
    )
    check_data_and_network(config)
    if starts_own_ray() and not ray.is_initialized():  # what needs no cluster is found before one is started
        resolve_resources(config, [own_resources()])
    check_storage(config.storage)
    uri = tracking.tracking_uri(project)
    client = tracking.open_client(uri, create=True)
    if config.register is not None:
        check_registry(client, config.register)
    if resumed is not None:
        check_resumable(client, resumed, config)
    initial = read_initial(config, project, resumed)
    with Display() as display, joined_ray():
        resources = _find_resources(config)
        run_id = resumed or _create_run(client, config, resources, initial, project)
        with claimed(client, run_id):
            if resumed is not None:
                tracking.resume_run(client, run_id, config)
            created = tracking.mark_running(client, run_id, config)
            print(f"MLflow run {run_id} in {tracking.shown_uri(uri)}", flush=True)
            if not read_manifest(config.data).samples("val"):
                print(f"not validated: {config.data} has no val samples; the last checkpoint is the best", flush=True)
            try:
                _train(client, run_id, config, resources, initial, display, created)
            except BaseException:
                _print_closing_lines(client, run_id, config, sys.stderr)
                raise
            _print_closing_lines(client, run_id, config, sys.stdout)
    return run_id


def _find_resources(config: Config) -> Resources:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = resolve_resources(config, nodes, may_grow=not starts_own_ray())
    if resources.device == "cuda":
        check_gpus()
    check_compiler(config.compile, torch.device(resources.device))
    return resources


def _create_run(
    client: MlflowClient, config: Config, resources: Resources, initial: InitialWeights | None, project: Path
) -> str:
    environment = {"manifest_sha256": manifest_digest(config.data), **tracking.environment(project)}
    params = {**resources.params(config), **environment, **(initial.params if initial else {})}
    return tracking.start_run(client, config, params, project)


def _print_closing_lines(client: MlflowClient, run_id: str, config: Config, stream: TextIO) -> None:
    lines = closing_lines(run_id, config) + tracking.viewing_lines(client, run_id)
    print("\n".join(lines), file=stream, flush=True)


def _train(
    client: MlflowClient,
    run_id: str,
    config: Config,
    resources: Resources,
    initial: InitialWeights | None,
    display: Display,
    created: float,
) -> None:
    status, problem = "FAILED", None
    try:
        if initial is not None:
            CheckpointStore(config.storage, run_id).write_initial(initial.state)
        with display.live_line():
            problem = fit(config, resources, client.tracking_uri, run_id, created)
        status = "FAILED" if problem else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracking.hurry_if_away(client)
        try:
            _log_checkpoints(client, run_id, config)
            if status == "FINISHED":
                status = "KILLED"  # if a signal comes meanwhile: then `--resume` logs the model
                problem = publish(client, run_id, config)
                status = "FINISHED"
        finally:
            tracking.finish(client, run_id, config.storage, status)
    if problem:
        raise TrainingError(problem)


def _log_checkpoints(client: MlflowClient, run_id: str, config: Config) -> None:
    """Copy the last and the best checkpoint into the run, and a picture of conv1, if there are any; or warn."""
    store = CheckpointStore(config.storage, run_id)
    try:
        for name, step in (("last", store.newest()), ("best", store.best())):
            if step is not None:
                with store.fetch(step) as folder:
                    client.log_artifacts(run_id, str(folder), f"checkpoints/{name}")
                    if name == "last":
                        _log_kernels(client, run_id, folder, config)
    except Exception as error:  # each kind of artifact store has exceptions of its own
        print(f"warning: run {run_id} has no copy of its checkpoints: {tracking.describe(error)}", file=sys.stderr)
        print(f"they are in {join(config.storage, run_id)}", file=sys.stderr)


def _log_kernels(client: MlflowClient, run_id: str, checkpoint: Path, config: Config) -> None:
    network = config.architecture()
    kernels = read_model(checkpoint / MODEL)[f"{network.first_layer}.weight"].numpy()
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "conv1-kernels.png")
        picture.write_bytes(kernels_png(kernels, network.towers))
        client.log_artifact(run_id, str(picture), "pictures")
