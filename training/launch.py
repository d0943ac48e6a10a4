"""A training under Ray Train: resources, workers, checkpoints, restarts, and its one MLflow run."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint as StoredCheckpoint
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from errors import InputError
from preprocess.manifest import manifest_digest, read_manifest
from training import tracking
from training.checkpoint import MODEL, read_model, write_checkpoint
from training.config import Config, Parallel, flatten
from training.loop.compile import check_compiler
from training.loop.worker import DivergenceError, Session, open_session, snapshot, train
from training.models import architecture, build
from training.optim.optimizer import check_layers
from training.parallel.layout import make_layout
from training.progress import Progress
from training.project import resolve
from training.report.pictures import kernels_png

COLLECTIVE_TIMEOUT_SECONDS = 300
"""A worker that waits longer than this for its peers fails, and the training starts again from its checkpoint."""
METRICS_SECONDS = 10.0
"""How long a checkpoint waits for MLflow to take the metrics of before it; training does not stop for a dead server."""
RAY_TRAIN_SETTINGS = {
    # How often Ray Train looks at its workers, in seconds: every report of a checkpoint waits for one look.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Workers' lines reach the terminal through Ray's log monitor; Ray Train would log them a second time.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Activations of one size come and go with every step: glibc would give them back to the system each time, and the
    # next step would wait for zeroed pages. Read by workers that start on this machine. Glibc takes no threshold for
    # mapped blocks above 2^25, and with one that it does not take it maps the loader's batches anew each time.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


OWN_RAY_SETTINGS = {
    # It watches nodes that a cloud takes back, and is one more process on the cores that train.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Beside those, for a Ray that is started for one training."""


class TrainingError(RuntimeError):
    """The training ended without reaching its last epoch."""


def launch(config: Config, project: Path) -> str:
    """Train as configured on a Ray cluster and return the id of the MLflow run.

    Args:
        config: relative paths in it are taken from `project`.
        project: folder of the default stores.

    Raises:
        InputError: data, network, batch, resources or stores do not fit; there is no run then.
        TrainingError: the training broke off, or its metrics could not be logged.
        KeyboardInterrupt: it was interrupted.
    """
    config = replace(
        config,
        data=resolve("data", config.data, project, must_exist=True),
        storage=resolve("storage", config.storage, project),
    )
    _check_data(config)
    uri = tracking.tracking_uri(project)
    client = tracking.open_client(uri, create=True)
    _join_ray()
    config = place(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    check_compiler(config.compile, torch.device(config.device))
    facts = {"manifest_sha256": manifest_digest(config.data), **tracking.environment(project)}
    params = {**flatten(config), **facts}
    run_id = tracking.create_run(client, config.experiment, config.recipe, params)
    client.log_dict(run_id, params, "config.json")
    print(f"MLflow run {run_id} in {uri}", flush=True)
    status = "FAILED"
    try:
        problem = _fit(config, uri, run_id)
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


def _join_ray() -> None:
    """Join the Ray that RAY_ADDRESS names, as every job does, or start one on this machine.

    Ray would also look for a head that was started here once, and wait in vain where that was killed.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS {address} is a job server: type `ray job submit -- python -m training.run ...`, "
            "or unset RAY_ADDRESS to train on a Ray of its own"
        )
    for name, value in {**RAY_TRAIN_SETTINGS, **({} if address else OWN_RAY_SETTINGS)}.items():
        os.environ.setdefault(name, value)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address or "local", ignore_reinit_error=True, logging_level=logging.WARNING)
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put one in its place that leaves without cleaning up


def _check_data(config: Config) -> None:
    manifest = read_manifest(config.data)
    if manifest.short_side != config.short_side:
        raise InputError(
            f"{config.data} has a short side of {manifest.short_side} pixels; "
            f"recipe {config.recipe} is for {config.short_side}"
        )
    manifest.split("val")
    samples = manifest.split("train").samples
    if samples < config.batch_size:
        raise InputError(f"batch_size {config.batch_size} is more than the {samples} train samples of {config.data}")
    network = architecture(config.network.name, **config.switches())
    network.check(len(manifest.classes), config.parallel.model)
    with torch.device("meta"):  # names alone: no memory, no drawing of weights
        named = build(config.network.name, len(manifest.classes), **config.switches())
    check_layers(named, config.optimizer, config.epochs)


def place(config: Config, nodes: list[dict[str, float]]) -> Config:
    """Fill in what depends on the cluster, and check that the cluster can run it.

    Args:
        config: of the training; `parallel` and `device` may leave things open.
        nodes: what each node of the cluster has in all: `CPU` and `GPU`.

    Raises:
        InputError: too few devices or cores, peers on the `model` axis that find no node to share, or a batch that
            the devices cannot divide.
    """
    gpus, cpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    device = config.device if config.device != "auto" else ("cuda" if gpus else "cpu")
    on_gpus, model = device == "cuda", config.parallel.model
    data = config.parallel.data or max(1, (gpus if on_gpus else 2) // model)
    workers = data * model
    if workers > (gpus if on_gpus else cpus):
        raise InputError(
            f"parallel.data {data} x parallel.model {model} needs {workers} {device} workers; "
            f"the cluster has {cpus} CPU cores and {gpus} GPUs"
        )
    _check_batch_divides(config, data)
    threads = config.parallel.cpus_per_worker or max(1, cpus // (gpus if on_gpus else workers))
    if threads * workers > cpus:
        raise InputError(
            f"parallel.cpus_per_worker {threads} for {workers} workers needs {threads * workers} cores; "
            f"the cluster has {cpus}"
        )
    placed = replace(config, device=device, parallel=Parallel(data, model, threads))
    _check_groups_fit(placed, nodes)
    return placed


def _check_batch_divides(config: Config, data: int) -> None:
    model = config.parallel.model
    hybrid = model > 1 and architecture(config.network.name).hybrid
    shares = data * model if hybrid else data
    if config.batch_size % shares:
        of = f"parallel.data {data} x parallel.model {model} devices" if hybrid else f"parallel.data {data} replicas"
        raise InputError(f"batch_size {config.batch_size} cannot be shared by {of}; valid are multiples of {shares}")


def _check_groups_fit(config: Config, nodes: list[dict[str, float]]) -> None:
    data, model, threads = config.parallel.data or 1, config.parallel.model, config.parallel.cpus_per_worker or 1
    workers_per_node = [int(node.get("CPU", 0) // threads) for node in nodes]
    if config.device == "cuda":
        gpus_per_node = [int(node.get("GPU", 0)) for node in nodes]
        workers_per_node = [min(pair) for pair in zip(workers_per_node, gpus_per_node, strict=True)]
    groups = sum(workers // model for workers in workers_per_node)
    if groups < data:
        raise InputError(
            f"parallel.cpus_per_worker {threads}: the nodes have room for {groups} groups of parallel.model {model} "
            f"{config.device} worker(s) on one node, and parallel.data asks for {data}"
        )


def _fit(config: Config, uri: str, run_id: str) -> str | None:
    """Run the workers to the end; return what went wrong, None if nothing did."""
    workers = (config.parallel.data or 1) * config.parallel.model
    use_gpu = config.device == "cuda"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "tracking_uri": uri, "run_id": run_id},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.parallel.cpus_per_worker or 1, **({"GPU": 1} if use_gpu else {})},
            # Ray Train ranks its workers node by node, and peers on the `model` axis are adjacent ranks. One group of
            # them is asked for on one node; several are packed, and `make_layout` looks whether one fell apart.
            placement_strategy="STRICT_PACK" if config.parallel.data == 1 else "PACK",
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the one of before Ray Train V2
            name=run_id,
            storage_path=config.storage,
            # Below ERROR it narrates every report, and calls a slow start of Ray's own actors a failure.
            logging_config=LoggingConfig(log_level="ERROR"),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.keep_checkpoints, checkpoint_score_attribute="val/top1"
            ),
        ),
    )
    try:
        result: Any = trainer.fit()
        return result.return_value
    except TrainingFailedError as error:
        return f"training failed: {error}"
    except SystemExit as error:  # how Ray Train answers Ctrl-C, with exit code 0
        raise KeyboardInterrupt from error


def train_worker(arguments: dict[str, Any]) -> Any:
    """Be one worker of the mesh, from the latest checkpoint on; return what ended the training early, if anything."""
    logging.getLogger().setLevel(logging.WARNING)  # some of Ray Train's reports go by the root logger
    config: Config = arguments["config"]
    assert config.parallel.data is not None
    assert config.parallel.cpus_per_worker is not None
    device = torch.device(get_device())
    hybrid = architecture(config.network.name).hybrid
    layout = make_layout(device, config.parallel.data, config.parallel.model, hybrid)
    metric_log = tracking.MetricLog(arguments["tracking_uri"], arguments["run_id"]) if layout.is_first else None
    progress = Progress(config.epochs)

    def log(metrics: dict[str, float], step: int) -> None:
        if metric_log is not None:
            metric_log.log(metrics, step)
            progress.show(metrics, step)

    def save(session: Session, metrics: dict[str, float]) -> None:
        progress.epoch_done(session.epoch)
        if metric_log is not None:
            # A training that starts again from this checkpoint logs nothing of before it.
            metric_log.flush(METRICS_SECONDS)
        _report(session, arguments["run_id"], metrics)

    stored = ray.train.get_checkpoint()
    try:
        if stored is None:
            session = open_session(config, layout, config.parallel.cpus_per_worker)
        else:
            with stored.as_directory() as folder:
                session = open_session(config, layout, config.parallel.cpus_per_worker, Path(folder))
        train(session, log, save)
    except DivergenceError as error:
        return str(error)
    if metric_log is not None:
        metric_log.close()
    return None


def _report(session: Session, run_id: str, metrics: dict[str, float]) -> None:
    parts = snapshot(session, run_id, metrics)
    with tempfile.TemporaryDirectory() as folder:
        stored = None
        if session.layout.is_first:
            write_checkpoint(Path(folder), *parts)
            stored = StoredCheckpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=stored, checkpoint_dir_name=f"epoch-{session.epoch:04d}")


def _log_checkpoints(client: tracking.MlflowClient, run_id: str, config: Config) -> None:
    """Copy the last and the best checkpoint into the run, and a picture of conv1, as far as there are any."""
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
    network = architecture(config.network.name)
    kernels = read_model(checkpoint / MODEL)[f"{network.first_layer}.weight"].numpy()
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "conv1-kernels.png")
        picture.write_bytes(kernels_png(kernels, network.towers))
        client.log_artifact(run_id, str(picture), "pictures")
