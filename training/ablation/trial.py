"""One training of a study, in a process of its own: train, evaluate, and log both into its child runs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from mlflow import MlflowClient
from mlflow.entities import Metric

from training import tracking
from training.ablation.study import SECONDS, TOP1_FINAL, TOP5_FINAL
from training.checkpoint import Snapshot
from training.config import Config
from training.ensemble import Ensemble
from training.inference import open_loader, predict_split
from training.launch.failures import final_reason
from training.launch.store import CheckpointStore
from training.load_model import LoadedModel, load_checkpoint
from training.loop.metrics import TOP1
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.step import TOP_K
from training.loop.train import train
from training.parallel.layout import Layout
from training.tracking.client import impatient_client
from training.tracking.settle import deliver

EVALUATION_BATCH = 128

Report = Callable[[dict[str, float]], None]
"""Takes the metrics of an epoch."""


@dataclass(frozen=True)
class Trial:
    """A training, where it runs, and the runs that it logs into."""

    label: str
    """For people: variant and seed."""
    config: Config
    device: str
    threads: int
    tracking_uri: str
    run_id: str
    """The child run of the training itself, which has the weights in its storage."""
    views: dict[str, int]
    """Number of crops for each child run that its weights are evaluated for; `run_id` is not among them if finished."""


def run_trial(trial: Trial, report: Report) -> str | None:
    """Train, unless the weights are there already, and evaluate; return one line if it failed."""
    torch.set_num_threads(trial.threads)
    client = impatient_client(trial.tracking_uri)
    try:
        for run_id in trial.views:
            client.update_run(run_id, status="RUNNING")
        store = CheckpointStore(trial.config.storage, trial.run_id)
        step = store.newest()
        if step is None:
            step = _train(trial, store, report)
        with store.fetch(step) as folder:
            trained = load_checkpoint(folder, torch.device(trial.device), trial.label, trial.run_id)
            seconds = store.describe(step).metrics[SECONDS]
            for run_id, crops in trial.views.items():
                _record(client, trial, run_id, {**evaluate(trained, trial.config.data, crops), SECONDS: seconds}, step)
    except Exception as error:
        reason = final_reason(error)
        if reason is None:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {tracking.describe(error)}"
        return reason
    return None


def evaluate(trained: LoadedModel, data: str, crops: int) -> dict[str, float]:
    """Return top-1 and top-5 accuracy on val as `training.evaluate` does; no top-5 with fewer than five classes."""
    loader = open_loader(trained, data, "val", EVALUATION_BATCH, crops, trained.config.local_staging())
    predictions = predict_split(Ensemble((trained,)), [loader]).average
    metrics = {TOP1_FINAL: float(predictions.correct.mean())}
    if len(trained.data.classes) >= TOP_K:
        metrics[TOP5_FINAL] = float(predictions.hits.any(axis=1).mean())
    return metrics


def _train(trial: Trial, store: CheckpointStore, report: Report) -> int:
    """Train to the last epoch, write the weights to evaluate, and return their step."""
    config = trial.config
    # A base that is finished, but has lost its weights, is trained again for its ten crops: its curves are complete.
    metric_log = None
    if trial.run_id in trial.views:
        metric_log = tracking.MetricLog(trial.tracking_uri, trial.run_id, config.storage)
    started = time.perf_counter()

    def log(metrics: dict[str, float], step: int) -> None:
        if metric_log is not None:
            metric_log.log(metrics, step)
        if TOP1 in metrics:
            report(metrics)

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        if state.epoch < config.epochs:
            return
        snapshot = capture_checkpoint(state, trial.run_id, {**metrics, SECONDS: time.perf_counter() - started})
        # It is evaluated, and never continued: the state of the optimizer is twice the weights.
        description = replace(snapshot.description, continuation=None)
        store.write(Snapshot(description, snapshot.model, {}), keep=1)

    state = build_state(config, Layout(torch.device(trial.device)), trial.threads)
    try:
        train(state, log, save)
    finally:
        if metric_log is not None:
            metric_log.close()
    return state.step


def _record(client: MlflowClient, trial: Trial, run_id: str, metrics: dict[str, float], step: int) -> None:
    """Give a child run its final metrics; only then is it finished."""
    deliver(client, run_id, trial.config.storage)
    now = int(time.time() * 1000)
    if run_id == trial.run_id:
        location = CheckpointStore(trial.config.storage, run_id).location(step)
        client.set_tag(run_id, tracking.LAST_CHECKPOINT, location)
    client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])
    client.set_terminated(run_id, "FINISHED")
