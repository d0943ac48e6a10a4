"""Ray Train: joining a cluster, the workers, their checkpoints and restarts."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint as StoredCheckpoint
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from errors import InputError
from interrupts import keep_sigterm_handler
from training import tracking
from training.checkpoint import write_checkpoint
from training.config import Config
from training.launch.progress import Progress
from training.launch.resources import Resources
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import DivergenceError, train
from training.parallel.layout import make_layout

COLLECTIVE_TIMEOUT_SECONDS = 300
"""A worker that waits longer for its peers fails, and the training restarts from its checkpoint."""
METRICS_SECONDS = 10.0
"""Longest wait of a checkpoint for MLflow to take earlier metrics; training does not stop for a dead server."""
RAY_TRAIN_SETTINGS = {
    # Interval of Ray Train's health checks in seconds; every report of a checkpoint waits for one.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Workers' lines reach the terminal through Ray's log monitor; Ray Train would log them a second time.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Keep freed activations in the process: otherwise each step waits for zeroed pages. Glibc ignores a threshold for
    # mapped blocks above 2^25, and would then map the loader's batches again each time.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
OWN_RAY_SETTINGS = {
    # It watches nodes that a cloud takes back, and costs a process on the cores that train.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Additional settings of a Ray that is started for one training."""


def join_ray() -> None:
    """Join the Ray cluster that RAY_ADDRESS names, as in every job, or start one on this machine.

    With address `auto`, Ray would also look for a head that was started here once, and wait in vain if it was killed.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS {address} is a job server: type `ray job submit -- python -m training.run ...`, "
            "or unset RAY_ADDRESS to train on a Ray of its own"
        )
    for name, value in {**RAY_TRAIN_SETTINGS, **({} if address else OWN_RAY_SETTINGS)}.items():
        os.environ.setdefault(name, value)
    with keep_sigterm_handler():
        ray.init(address or "local", ignore_reinit_error=True, logging_level=logging.WARNING)


def fit(config: Config, resources: Resources, tracking_uri: str, run_id: str) -> str | None:
    """Run the workers to the end; return the reason if the training failed.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    use_gpu = resources.device == "cuda"
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # its return value is the result's
        train_loop_config={"config": config, "resources": resources, "tracking_uri": tracking_uri, "run_id": run_id},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            # Ray Train ranks its workers node by node, and peers on the `model` axis have adjacent ranks. A single
            # group is requested on one node; several are packed, and `make_layout` checks that none fell apart.
            placement_strategy="STRICT_PACK" if resources.data == 1 else "PACK",
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the class from before Ray Train V2
            name=run_id,
            storage_path=config.storage,
            # Below ERROR it prints every report, and calls a slow start of Ray's own actors a failure.
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
    except SystemExit as error:  # Ray Train's response to Ctrl-C, with exit code 0
        raise KeyboardInterrupt from error


def train_worker(arguments: dict[str, Any]) -> str | None:
    """Run one worker of the mesh from the latest checkpoint on; return the reason if the loss diverged."""
    logging.getLogger().setLevel(logging.WARNING)  # some of Ray Train's reports use the root logger
    config: Config = arguments["config"]
    resources: Resources = arguments["resources"]
    layout = make_layout(torch.device(get_device()), resources.data, resources.model, config.architecture().hybrid)
    metric_log = tracking.MetricLog(arguments["tracking_uri"], arguments["run_id"]) if layout.is_first else None
    progress = Progress(config.epochs)

    def log(metrics: dict[str, float], step: int) -> None:
        if metric_log is not None:
            metric_log.log(metrics, step)
            progress.show(metrics, step)

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        progress.epoch_done(state.epoch)
        if metric_log is not None:
            # A training that restarts from this checkpoint does not log earlier metrics again.
            metric_log.flush(METRICS_SECONDS)
        _report(state, arguments["run_id"], metrics)

    stored = ray.train.get_checkpoint()
    try:
        if stored is None:
            state = build_state(config, layout, resources.cpus_per_worker)
        else:
            with stored.as_directory() as folder:
                state = build_state(config, layout, resources.cpus_per_worker, Path(folder))
        train(state, log, save)
    except DivergenceError as error:
        return str(error)
    if metric_log is not None:
        metric_log.close()
    return None


def _report(state: TrainState, run_id: str, metrics: dict[str, float]) -> None:
    parts = capture_checkpoint(state, run_id, metrics)
    with tempfile.TemporaryDirectory() as folder:
        stored = None
        if state.layout.is_first:
            write_checkpoint(Path(folder), *parts)
            stored = StoredCheckpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=stored, checkpoint_dir_name=f"epoch-{state.epoch:04d}")
