"""A study in MLflow: a parent run, a child run for each variant and seed, and which of them are finished."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from errors import InputError
from preprocess.manifest import manifest_digest
from training import tracking
from training.ablation.plan import Key, Study
from training.ablation.table import Result
from training.config import flatten
from training.tracking.claim import CLAIM_SECONDS, is_alive
from training.tracking.experiment import find_experiment
from training.tracking.settle import deliver
from training.tracking.source import source_tags
from typed_json import parse_json, to_json_values

STUDY_NAME = "ablation.json"
"""Artifact of a parent run: its study."""
VARIANT, SEED = "twotower.variant", "twotower.seed"
"""Tags of a child run."""
TOP1_FINAL, TOP5_FINAL, SECONDS = "eval/top1", "eval/top5", "train/seconds"
"""Metrics of a finished child run: accuracy on val by the evaluation's own code, and the time of the training."""
ENDED = ("FINISHED", "FAILED", "KILLED")


def find_study(client: MlflowClient, study: Study) -> str | None:
    """Return the id of the parent run of a study, or None if there is none; of several, the first one."""
    experiment = find_experiment(client, study.base.experiment)
    digest = study.digest(manifest_digest(study.base.data))
    with tracking.store_errors(client.tracking_uri):
        found = client.search_runs([experiment.experiment_id], f"tags.`{tracking.STUDY}` = '{digest}'")
    runs = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
    return runs[0].info.run_id if runs else None


def create_study(client: MlflowClient, study: Study, project: Path) -> str:
    """Create the parent run of a study, and return its id.

    Raises:
        InputError: the store fails, or another process has created it at the same moment.
    """
    digest = study.digest(manifest_digest(study.base.data))
    params = {
        **{"recipe": study.base.recipe, "toggles": " ".join(study.toggles), "seeds": " ".join(map(str, study.seeds))},
        **{f"base.{name}": value for name, value in flatten(study.base).items() if name not in ("recipe", "seed")},
        **{"manifest_sha256": manifest_digest(study.base.data), **tracking.environment(project)},
    }
    tags = {**source_tags(project), **study.base.tags, tracking.STUDY: digest}
    run_id = tracking.create_run(client, study.base.experiment, study.name, params, tags)
    time.sleep(CLAIM_SECONDS)  # for another process that has not found this one
    first = find_study(client, study)
    if first != run_id:
        client.delete_run(run_id)
        raise InputError(f"study {first} is being started by another process; leave it to that one")
    with tracking.store_errors(client.tracking_uri):
        client.log_dict(run_id, to_json_values(study), STUDY_NAME)
    return run_id


def stored_study(client: MlflowClient, run_id: str) -> Study:
    """Return the study of a parent run; raise `InputError` if the run is none."""
    if tracking.STUDY not in tracking.find_run(client, run_id).data.tags:
        raise InputError(f"--resume is {run_id}: it is no study; use python -m training.run --resume {run_id}")
    with tempfile.TemporaryDirectory() as folder:
        path = tracking.fetch_artifact(client, run_id, STUDY_NAME, Path(folder))
        return parse_json(Study, path.read_text(encoding="utf-8"), f"{STUDY_NAME} of run {run_id}")


def find_children(client: MlflowClient, parent_id: str) -> dict[Key, Run]:
    """Return the child runs of a study that exist."""
    experiment = tracking.find_run(client, parent_id).info.experiment_id
    with tracking.store_errors(client.tracking_uri):
        runs = client.search_runs([experiment], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_id}'", max_results=10_000)
    return {(run.data.tags[VARIANT], int(run.data.tags[SEED])): run for run in runs if VARIANT in run.data.tags}


def create_children(
    client: MlflowClient, parent_id: str, study: Study, wanted: Iterable[Key], project: Path
) -> dict[Key, str]:
    """Return the ids of these child runs; those that do not exist are created, and wait."""
    existing = find_children(client, parent_id)
    variants = {variant.name: variant for variant in study.variants}
    environment = {"manifest_sha256": manifest_digest(study.base.data), **tracking.environment(project)}
    ids: dict[Key, str] = {}
    for name, seed in wanted:
        if (name, seed) in existing:
            ids[name, seed] = existing[name, seed].info.run_id
            continue
        variant = variants[name]
        params: dict[str, Any] = {**flatten(variant.config), "seed": seed, "crops": variant.crops, **environment}
        tags = {
            **{MLFLOW_PARENT_RUN_ID: parent_id, VARIANT: name, SEED: str(seed)},
            **{**source_tags(project), **study.base.tags},
        }
        label = f"{study.name}: {variant.words}, seed {seed}"
        ids[name, seed] = tracking.create_run(client, study.base.experiment, label, params, tags)
        with tracking.store_errors(client.tracking_uri):
            client.update_run(ids[name, seed], status="SCHEDULED")
    return ids


def finished_results(children: Mapping[Key, Run]) -> dict[Key, Result]:
    """Return the results of the child runs that are finished: those that say so, and have their final metrics."""
    return {
        key: Result(run.data.metrics[TOP1_FINAL], run.data.metrics.get(TOP5_FINAL), run.data.metrics[SECONDS])
        for key, run in children.items()
        if run.info.status == "FINISHED" and {TOP1_FINAL, SECONDS} <= run.data.metrics.keys()
    }


def settle_study(client: MlflowClient, parent: Run) -> Run:
    """Return the parent run as it is; a study that counts as running, but has nobody who runs it, becomes KILLED."""
    if parent.info.status != "RUNNING" or is_alive(parent.data.tags):
        return parent
    close_study(client, parent.info.run_id, parent.data.params["base.storage"], set(), "KILLED")
    return client.get_run(parent.info.run_id)


def close_study(client: MlflowClient, parent_id: str, storage: str, failed: set[Key], status: str) -> None:
    """End the parent run and the child runs that have not ended: FAILED those in `failed`, KILLED the others."""
    try:
        for key, run in find_children(client, parent_id).items():
            run_id = run.info.run_id
            if run.info.status == "FINISHED" or (run.info.status in ENDED and key not in failed):
                continue
            with contextlib.suppress(OSError):
                deliver(client, run_id, storage)
            client.set_terminated(run_id, "FAILED" if key in failed else "KILLED")
        client.set_terminated(parent_id, status)
    except Exception as error:  # each kind of store has exceptions of its own
        print(
            f"warning: MLflow has not taken the state of study {parent_id}: {tracking.describe(error)}", file=sys.stderr
        )
        print(f"python -m training.ablate --resume {parent_id} brings it up to date", file=sys.stderr, flush=True)
