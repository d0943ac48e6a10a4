"""One worker of a training: its place on the mesh, its checkpoints, and on the first one the metrics."""

from __future__ import annotations

import contextlib
import logging
import traceback
from typing import Any

import ray
import torch
from ray.train import get_context
from ray.train.torch import get_device

from training import tracking
from training.config import Config
from training.launch.failures import FinalError, RestartError, final_reason, says_where
from training.launch.process_group import join_process_group
from training.launch.request_watch import RequestWatch
from training.launch.resources import Resources
from training.launch.stall_watch import StallWatch
from training.launch.store import BackgroundWriter, CheckpointStore
from training.loop.request import Request, StoppedError
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import train
from training.parallel.layout import Layout, make_layout
from training.terminal.progress import Progress


def train_worker(arguments: dict[str, Any]) -> None:
    """Run one worker of the mesh from the newest checkpoint on.

    Raises:
        FinalError: it would fail again.
        RestartError: it was asked to end, and has saved a checkpoint.
    """
    logging.getLogger().setLevel(logging.WARNING)  # some of Ray Train's reports use the root logger
    try:
        _train_in_mesh(arguments)
    except Exception as error:
        reason = final_reason(error)
        if reason is None:
            if not says_where(error):
                traceback.print_exc()  # Ray hands on the exception without it
            raise
        raise FinalError(reason) from error


def _train_in_mesh(arguments: dict[str, Any]) -> None:
    config: Config = arguments["config"]
    resources: Resources = arguments["resources"]
    run_id: str = arguments["run_id"]
    join_process_group(get_context().get_world_rank(), get_context().get_world_size())
    layout = make_layout(
        torch.device(get_device()),
        resources.widths,
        resources.model,
        hybrid=config.architecture().hybrid,
        node=ray.get_runtime_context().get_node_id(),
    )
    store = CheckpointStore(config.storage, run_id)
    is_first = layout is not None and layout.is_first
    watch = RequestWatch(store if is_first else None, watch_preemption=arguments["watch_preemption"])
    if layout is None:  # an elastic training has no use for a worker that the batch cannot be divided among
        return
    state = _build_state(config, layout, resources.cpus_per_worker, store)
    state.take_request = watch
    StallWatch(layout.global_rank, lambda: state.batches_seen)
    with _system_metrics(arguments):
        if is_first:
            _train_and_record(state, store, arguments["tracking_uri"], run_id)
        else:
            # Every process takes part in a copy of the training, and the first one writes it.
            with contextlib.suppress(StoppedError):
                train(state, lambda _metrics, _step: None, lambda state, metrics: _copy(state, run_id, metrics))


def _system_metrics(arguments: dict[str, Any]) -> contextlib.AbstractContextManager[object]:
    """Return what logs the metrics of this node on the first of its workers, and nothing on the others."""
    workers = get_context()
    if workers.get_local_rank() != 0:
        return contextlib.nullcontext()
    is_only_node = workers.get_local_world_size() == workers.get_world_size()
    uri, run_id, storage = arguments["tracking_uri"], arguments["run_id"], arguments["config"].storage
    return tracking.SystemMetrics(uri, run_id, storage, arguments["created"], is_only_node=is_only_node)


def _build_state(config: Config, layout: Layout, num_threads: int, store: CheckpointStore) -> TrainState:
    step = layout.gather_objects(store.newest() if layout.is_first else None)[0]
    if step is None:
        weights = None if config.init is None else store.read_initial()
        return build_state(config, layout, num_threads, weights=weights)
    with store.fetch(step) as folder:
        return build_state(config, layout, num_threads, folder)


def _copy(state: TrainState, run_id: str, metrics: dict[str, float]) -> None:
    capture_checkpoint(state, run_id, metrics)


def _train_and_record(state: TrainState, store: CheckpointStore, tracking_uri: str, run_id: str) -> None:
    """Train on the worker that logs and writes checkpoints."""
    metric_log = tracking.MetricLog(tracking_uri, run_id, state.config.storage)
    progress = Progress(state)
    if state.format_reason:
        print(f"precision {state.number_format}: {state.format_reason}", flush=True)

    def log(metrics: dict[str, float], step: int) -> None:
        metric_log.log(metrics, step)
        progress.show(metrics)

    # Points are on disk before the checkpoint after them is complete: who continues from it does not log them again.
    writer = BackgroundWriter(store, state.config.keep_checkpoints, metric_log.flush, metric_log.record_checkpoints)

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        writer.write(capture_checkpoint(state, run_id, metrics))

    request = Request.NONE
    try:
        train(state, log, save)
    except StoppedError as stopped:  # it has saved, as at the end of a training
        request = stopped.request
    finally:
        metric_log.flush()  # those of a training that fails, too
    if (error := writer.wait()) is not None:
        raise error
    metric_log.close()
    progress.close()
    if request is Request.RESTART:  # raised here only: a failure ends the other workers at once
        raise RestartError("was asked to end (SIGTERM) and has saved a checkpoint")
