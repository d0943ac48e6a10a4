"""Ray Train: the workers, their checkpoints and restarts."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from training import tracking
from training.config import Config
from training.launch.progress import Progress
from training.launch.resources import Resources
from training.launch.store import BackgroundWriter, CheckpointStore, StopWatch
from training.loop.meter import DivergenceError
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import StoppedError, train
from training.parallel.layout import Layout, make_layout

COLLECTIVE_TIMEOUT_SECONDS = 300
"""A worker that waits longer for its peers fails, and the training restarts from its checkpoint."""
METRICS_SECONDS = 10.0
"""Longest wait of a checkpoint for MLflow to take earlier metrics; training does not stop for a dead server."""


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
        ),
    )
    store = CheckpointStore(config.storage, run_id)
    store.withdraw_stop()
    fitting: Future[str | None] = Future()
    # In a thread of its own, Ray Train does not take over Ctrl-C, on which it would kill the workers. It is a daemon:
    # once the workers have been killed, it may hang.
    threading.Thread(target=_fit, args=(trainer, fitting), name="fit", daemon=True).start()
    try:
        return fitting.result()
    except KeyboardInterrupt:
        _stop(fitting, store, config.checkpoint.grace_seconds)
        raise


def _fit(trainer: TorchTrainer, outcome: Future[str | None]) -> None:
    try:
        result: Any = trainer.fit()
        outcome.set_result(result.return_value)
    except TrainingFailedError as error:
        outcome.set_result(f"training failed: {error}")
    except BaseException as error:
        outcome.set_exception(error)


def _stop(fitting: Future[str | None], store: CheckpointStore, seconds: float) -> None:
    """Let the workers save a checkpoint and end; kill them after `seconds`, or at the next signal."""
    store.request_stop()
    print(f"saving a checkpoint (at most {seconds:.0f} s; a second signal stops at once)", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        wait([fitting], seconds)
    if not fitting.done():
        ray.shutdown()


def train_worker(arguments: dict[str, Any]) -> str | None:
    """Run one worker of the mesh from the newest checkpoint on; return the reason if the loss diverged."""
    logging.getLogger().setLevel(logging.WARNING)  # some of Ray Train's reports use the root logger
    config: Config = arguments["config"]
    resources: Resources = arguments["resources"]
    run_id: str = arguments["run_id"]
    layout = make_layout(torch.device(get_device()), resources.data, resources.model, config.architecture().hybrid)
    store = CheckpointStore(config.storage, run_id)
    try:
        state = _build_state(config, layout, resources.cpus_per_worker, store)
        state.stop_requested = StopWatch(store) if layout.is_first else lambda: False
        if not layout.is_first:
            # Every process takes part in a copy of the training, and the first one writes it.
            with contextlib.suppress(StoppedError):
                train(state, lambda _metrics, _step: None, lambda state, metrics: _copy(state, run_id, metrics))
            return None
        _train_and_record(state, store, arguments["tracking_uri"], run_id)
    except DivergenceError as error:
        return str(error)
    return None


def _build_state(config: Config, layout: Layout, num_threads: int, store: CheckpointStore) -> TrainState:
    step = layout.gather_objects(store.newest() if layout.is_first else None)[0]
    if step is None:
        return build_state(config, layout, num_threads)
    with store.fetch(step) as folder:
        return build_state(config, layout, num_threads, folder)


def _copy(state: TrainState, run_id: str, metrics: dict[str, float]) -> None:
    capture_checkpoint(state, run_id, metrics)


def _train_and_record(state: TrainState, store: CheckpointStore, tracking_uri: str, run_id: str) -> None:
    """Train on the worker that logs and writes checkpoints."""
    metric_log = tracking.MetricLog(tracking_uri, run_id)
    progress = Progress(state.config.epochs)

    def log(metrics: dict[str, float], step: int) -> None:
        metric_log.log(metrics, step)
        progress.show(metrics, step)

    # Points go out before the checkpoint after them is complete: who continues from it does not log them again.
    writer = BackgroundWriter(
        store, state.config.keep_checkpoints, lambda: metric_log.flush(METRICS_SECONDS), metric_log.record_checkpoints
    )

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        if metrics:
            progress.epoch_done(state.epoch)
        writer.write(capture_checkpoint(state, run_id, metrics))

    with contextlib.suppress(StoppedError):  # it has saved, as at the end of a training
        train(state, log, save)
    if (error := writer.wait()) is not None:
        raise error
    metric_log.close()
