"""Ray Train: starting the workers, restarting them, and stopping them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import Future, wait

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from training.config import Config
from training.launch.controller_watch import ControllerWatch
from training.launch.failures import FailureReport, controller_failure, failure_reason
from training.launch.process_group import ProcessGroupConfig
from training.launch.ray_environment import PREEMPTION_WATCHER, WORKER_SETTINGS, starts_own_ray
from training.launch.resources import Resources
from training.launch.store import CheckpointStore
from training.launch.worker import train_worker

COLLECTIVE_TIMEOUT_SECONDS = 300
"""A worker that waits longer for its peers fails, and the training restarts from its checkpoint."""
RESIZE_SECONDS = 30.0
"""An elastic training looks this often whether there is room for more replicas."""


def fit(config: Config, resources: Resources, tracking_uri: str, run_id: str, created: float) -> str | None:
    """Run the workers to the end; return the reason if the training failed.

    `created` is the time of the MLflow run's creation, in seconds since 1970.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    watch_preemption = os.environ.get(PREEMPTION_WATCHER) != "0"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            **{"config": config, "resources": resources, "tracking_uri": tracking_uri, "run_id": run_id},
            **{"watch_preemption": watch_preemption, "created": created},
        },
        torch_config=ProcessGroupConfig(
            timeout_s=COLLECTIVE_TIMEOUT_SECONDS, grace_seconds=config.checkpoint.grace_seconds
        ),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # as below
            num_workers=resources.num_workers,  # type: ignore[arg-type]
            use_gpu=resources.device == "cuda",
            resources_per_worker=resources.per_worker,
            # Ray Train ranks its workers node by node, and peers on the `model` axis have adjacent ranks. A single
            # group is requested on one node; several are packed, and `make_layout` leaves out those that fell apart.
            placement_strategy="STRICT_PACK" if resources.widths[-1] == 1 else "PACK",
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the class from before Ray Train V2
            name=run_id,
            storage_path=config.storage,
            worker_runtime_env=None if starts_own_ray() else {"env_vars": WORKER_SETTINGS},
            # It prints every report, calls a slow start of Ray's own actors a failure, and repeats `FailureReport`.
            logging_config=LoggingConfig(log_level="CRITICAL"),
            callbacks=[
                FailureReport(config.max_failures),  # type: ignore[list-item]
                ControllerWatch(config.storage, run_id, resources, config.checkpoint.grace_seconds),  # type: ignore[list-item]
            ],
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    store = CheckpointStore(config.storage, run_id)
    store.withdraw_requests()
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
        trainer.fit()
        outcome.set_result(None)
    except TrainingFailedError as error:
        outcome.set_result(failure_reason(error))
    except RayError as error:  # its controller has died, or was killed
        outcome.set_result(controller_failure(error))
    except BaseException as error:
        outcome.set_exception(error)


def _stop(fitting: Future[str | None], store: CheckpointStore, seconds: float) -> None:
    """Let the workers save a checkpoint and end; kill them after `seconds`, or at the next signal."""
    store.request("stop")
    print(f"saving a checkpoint (at most {seconds:.0f} s; a second signal stops at once)", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        wait([fitting], seconds)
    if not fitting.done():
        ray.shutdown()
