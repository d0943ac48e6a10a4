"""The model of a finished run in MLflow, and its version in the model registry."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Literal

import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from errors import InputError
from object_store import join
from pipeline.reading.samples import Samples
from preprocess.manifest import read_manifest
from training.checkpoint import Checkpoint, read_checkpoint
from training.config import Config
from training.launch.store import CheckpointStore
from training.load_model import load_checkpoint
from training.loop.metrics import TOP1
from training.tracking import describe

NAME = "model"
"""Name of the model within its run: `runs:/RUN_ID/model`."""
VERSIONS = "mlflow.modelVersions"
"""Tag of a model by which the UI links it to its versions in the registry."""


def check_registry(client: MlflowClient, name: str) -> None:
    """Raise `InputError` unless the store of `client` has a model registry that would take this name."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise InputError(
                f"register is {name!r}: {str(error).splitlines()[0]} "
                "Use a name without / and :, and an MLflow store that has a model registry"
            ) from error


def publish(client: MlflowClient, run_id: str, config: Config) -> str | None:
    """Log the network of a run's best checkpoint as its model, and register it if `config.register` asks for that.

    Without a model the run is still complete: that is a warning. Returns the reason if it could not be registered.
    """
    try:
        best, model = _log_best(client, run_id, config)
    except Exception as error:  # each kind of artifact store has exceptions of its own
        print(f"warning: run {run_id} has no model: {describe(error)}", file=sys.stderr)
        return f"the training is complete, but has no model for {config.register}" if config.register else None
    uri = f"runs:/{run_id}/{NAME}"
    print(f"model {uri}: the network of step {best.step}, {_accuracy(best)}")
    if config.register is None:
        return None
    try:
        version = _register(client, config.register, best, model)
    except Exception as error:  # as above
        return f"the training is complete, but {uri} is not registered as {config.register}: {describe(error)}"
    print(f"registered as models:/{config.register}/{version}")
    return None


def _log_best(client: MlflowClient, run_id: str, config: Config) -> tuple[Checkpoint, LoggedModel]:
    store = CheckpointStore(config.storage, run_id)
    step = store.best()
    if step is None:
        raise InputError(f"no epoch was completed: {join(config.storage, run_id)} holds no validated checkpoint")
    with store.fetch(step) as checkpoint:
        best = read_checkpoint(checkpoint)
        return best, log_model(client, run_id, checkpoint, best, _example(config))


def log_model(client: MlflowClient, run_id: str, checkpoint: Path, best: Checkpoint, example: bytes) -> LoggedModel:
    """Log the network of a checkpoint folder, described by `best`, as the model of a run; `example` is an image file.

    Raises:
        InputError: the checkpoint is damaged.
        Exception: of the artifact store.
    """
    from training.serving.mlflow_model import save_model  # a part of MLflow that takes a second

    trained = load_checkpoint(checkpoint, torch.device("cpu"), f"run {run_id}, step {best.step}", run_id)
    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=NAME,
        source_run_id=run_id,
        tags={"step": str(best.step), "epoch": str(best.epoch)},
        params=run.data.params,
        model_type="image-classifier",
    )
    status: Literal["READY", "FAILED"] = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as folder:
            location = logged.artifact_location
            identity = Model(location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
            save_model(trained, Path(folder), example, identity)
            client.log_model_artifacts(logged.model_id, folder)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, best.step)])
        client.log_batch(run_id, metrics=_metrics(client, run_id, best, logged.model_id))
        status = "READY"
    finally:
        client.finalize_logged_model(logged.model_id, status)
    return logged


def _register(client: MlflowClient, name: str, best: Checkpoint, model: LoggedModel) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    measured = {TOP1: f"{best.metrics[TOP1]:.4f}"} if TOP1 in best.metrics else {}
    version: str = client.create_model_version(
        name,
        model.artifact_location,  # "models:/..." would be looked up in the store of MLFLOW_TRACKING_URI
        model.source_run_id,
        tags={**measured, "epoch": str(best.epoch), "step": str(best.step)},
        description=f"{best.config.recipe}, {best.config.network.name} on {best.data.name}: {_accuracy(best)}",
        await_creation_for=0,
        model_id=model.model_id,
    ).version
    client.set_logged_model_tags(model.model_id, {VERSIONS: json.dumps([{"name": name, "version": version}])})
    return version


def _accuracy(best: Checkpoint) -> str:
    return f"{TOP1} {best.metrics[TOP1]:.4f}" if TOP1 in best.metrics else "not validated"


def _metrics(client: MlflowClient, run_id: str, best: Checkpoint, model_id: str) -> list[Metric]:
    """Return the points of the run that are about this model, for MLflow to link; no point is new to the run."""
    points = [point for name in best.metrics for point in client.get_metric_history(run_id, name)]
    return [
        Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id, run_id=run_id)
        for point in points
        if point.step == best.step
    ]


def _example(config: Config) -> bytes:
    """Return the first image of the val split, or of the train split if that has none."""
    manifest = read_manifest(config.data)
    split = "val" if manifest.samples("val") else "train"
    samples = Samples(config.data, manifest, split, config.local_staging())
    try:
        return samples.example(0).jpeg
    finally:
        samples.close()
