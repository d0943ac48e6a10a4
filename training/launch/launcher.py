"""The life of one training: checks, MLflow run, Ray Train, artifacts."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import ray
import torch
from ray.train import Result

from preprocess.manifest import manifest_digest
from training import tracking
from training.checkpoint import MODEL, read_model
from training.cli import resolve
from training.config import Config
from training.launch.ray_train import fit, join_ray
from training.launch.resources import check_data_and_network, resolve_resources
from training.loop.compile import check_compiler
from training.report.pictures import kernels_png


class TrainingError(RuntimeError):
    """The training ended before its last epoch."""


def launch(config: Config, project: Path) -> str:
    """Train as configured on a Ray cluster and return the id of the MLflow run; relative paths start at `project`.

    Raises:
        InputError: data, network, batch, resources or stores do not fit; no run exists then.
        TrainingError: the training failed, or its metrics could not be logged.
        KeyboardInterrupt: it was interrupted.
    """
    config = replace(
        config,
        data=resolve("data", config.data, project, must_exist=True),
        storage=resolve("storage", config.storage, project),
    )
    check_data_and_network(config)
    uri = tracking.tracking_uri(project)
    client = tracking.open_client(uri, create=True)
    join_ray()
    resources = resolve_resources(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    check_compiler(config.compile, torch.device(resources.device))
    environment = {"manifest_sha256": manifest_digest(config.data), **tracking.environment(project)}
    params = {**resources.params(config), **environment}
    run_id = tracking.create_run(client, config.experiment, config.recipe, params)
    client.log_dict(run_id, params, "config.json")
    print(f"MLflow run {run_id} in {uri}", flush=True)
    status = "FAILED"
    try:
        problem = fit(config, resources, uri, run_id)
        status = "FAILED" if problem else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _log_checkpoints(client, run_id, config)
        client.set_terminated(run_id, status)
    if problem:
        raise TrainingError(problem)
    return run_id


def _log_checkpoints(client: tracking.MlflowClient, run_id: str, config: Config) -> None:
    """Copy the last and the best checkpoint into the run, and a picture of conv1, if there are any."""
    try:
        result = Result.from_path(f"{config.storage}/{run_id}")
    except (RuntimeError, OSError):
        return  # it ended before the first checkpoint
    best = result.get_best_checkpoint("val/top1", "max") if result.checkpoint else None
    for name, stored in (("last", result.checkpoint), ("best", best)):
        if stored is not None:
            with stored.as_directory() as folder:
                client.log_artifacts(run_id, folder, f"checkpoints/{name}")
                if name == "last":
                    _log_kernels(client, run_id, Path(folder), config)


def _log_kernels(client: tracking.MlflowClient, run_id: str, checkpoint: Path, config: Config) -> None:
    network = config.architecture()
    kernels = read_model(checkpoint / MODEL)[f"{network.first_layer}.weight"].numpy()
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "conv1-kernels.png")
        picture.write_bytes(kernels_png(kernels, network.towers))
        client.log_artifact(run_id, str(picture), "pictures")
