"""Continuing a run: its own configuration, and the fields of it that may be changed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlflow import MlflowClient

from errors import InputError
from preprocess.manifest import manifest_digest
from training import tracking
from training.config import CHANGEABLE, Config, flatten
from training.launch.store import CheckpointStore
from training.optim.schedules import EXTENDED
from training.tracking.claim import check_unclaimed
from typed_json import parse_json


def stored_config(run_id: str, project: Path) -> Config:
    """Return the configuration of a run, as it was requested.

    Raises:
        InputError: there is no such store or run, or the run has no configuration.
    """
    client = tracking.open_client(tracking.tracking_uri(project))
    with tempfile.TemporaryDirectory() as folder:
        path = tracking.fetch_artifact(client, run_id, tracking.CONFIG_NAME, Path(folder))
        return parse_json(Config, path.read_text(encoding="utf-8"), f"{tracking.CONFIG_NAME} of run {run_id}")


def check_changes(stored: Config, wanted: Config) -> None:
    """Raise `InputError` unless only fields differ that a run may change; print what more epochs mean.

    Raises:
        InputError: names the first field that differs.
    """
    before, after = flatten(stored), flatten(wanted)
    for name in [*before, *after]:
        old, new = before.get(name), after.get(name)
        if old == new or name in CHANGEABLE or (name == "epochs" and wanted.epochs > stored.epochs):
            continue
        if name == "epochs":
            raise InputError(f"epochs is {new}: the run was started for {old}; use more, or leave it out")
        raise InputError(f"{name} is {new!r}: a run is resumed with its own, {old!r}; leave it out")
    if wanted.epochs > stored.epochs:
        schedule = stored.optimizer.schedule
        print(f"{wanted.epochs} epochs, not {stored.epochs}; optimizer.schedule {schedule}: {EXTENDED[schedule]}")


def check_resumable(client: MlflowClient, run_id: str, config: Config) -> None:
    """Raise `InputError` if the run is finished, was trained on other data, or is being trained now."""
    run = tracking.find_run(client, run_id)
    check_unclaimed(run_id, run.data.tags)
    with tracking.store_errors(client.tracking_uri):
        tracking.settle(client, run, config.storage)
    store = CheckpointStore(config.storage, run_id)
    step = store.newest()
    if step is None:
        print(f"no checkpoint of run {run_id} in {config.storage}: it begins again")
        return
    saved = store.describe(step)
    if saved.epoch >= config.epochs and run.info.status == "FINISHED":
        raise InputError(f"epochs is {config.epochs}: run {run_id} has completed {saved.epoch}; use --epochs with more")
    if saved.data.manifest_sha256 != manifest_digest(config.data):
        raise InputError(f"data is {config.data}: run {run_id} was trained on another data set; use that one")
    if saved.epoch >= config.epochs:
        print(f"run {run_id} has completed its {saved.epoch} epochs, but was ended before its model was logged")
        return
    place = f"step {step}, epoch {saved.epoch + 1} of {config.epochs}"
    print(f"run {run_id} goes on from its checkpoint of {place}: {store.location(step)}", flush=True)
