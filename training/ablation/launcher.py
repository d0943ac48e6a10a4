"""The life of a study: checks, its runs, Ray, the table."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import ray
import torch
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from atomic_files import atomic_write
from errors import InputError
from preprocess.manifest import read_manifest
from training import tracking
from training.ablation.picture import differences_png
from training.ablation.plan import Key, Study, Training, plan_trainings
from training.ablation.study import (
    close_study,
    create_children,
    create_study,
    find_children,
    find_study,
    finished_results,
)
from training.ablation.table import make_rows, to_csv, to_markdown
from training.ablation.trial import Trial
from training.ablation.tuning import run_trials, trial_resources
from training.cli import resolve
from training.config import Config
from training.launch.gpu_check import check_gpus
from training.launch.ray_cluster import joined_ray, own_resources
from training.launch.ray_environment import starts_own_ray
from training.launch.resources import check_data_and_network
from training.launch.store import check_storage
from training.loop.compile import check_compiler
from training.report.output import prepare_folder
from training.tracking.claim import check_unclaimed, claimed

TABLE, CSV, PICTURE = "ablation.md", "ablation.csv", "ablation.png"


class StudyError(RuntimeError):
    """Trainings of the study failed; the others are in its table."""


def launch_study(
    study: Study, project: Path, concurrent: int = 1, output: Path | None = None, resumed: str | None = None
) -> str:
    """Run what is left of a study on a Ray cluster, write its table, and return the id of its parent run.

    Args:
        study: relative paths in its base start at `project`.
        project: folder of the default stores.
        concurrent: trainings at once.
        output: folder of the table, the CSV file and the picture; None: reports/ablation-RUN_ID.
        resumed: id of the parent run; None: that of the same study, if there is one, or a new one.

    Raises:
        InputError: data, a variant, resources or stores do not fit, or another process runs the study.
        StudyError: trainings failed.
        KeyboardInterrupt: it was interrupted.
    """
    study = replace(study, base=_resolve(study.base, project))
    for variant in study.variants:
        check_data_and_network(variant.config)
    if not read_manifest(study.base.data).samples("val"):
        raise InputError(f"data is {study.base.data}: it has no val samples to compare variants on; use another")
    if starts_own_ray() and not ray.is_initialized():  # what needs no cluster is found before one is started
        trial_resources(study.base.device, [own_resources()], concurrent)
    check_storage(study.base.storage)
    client = tracking.open_client(tracking.tracking_uri(project), create=True)
    parent_id = resumed or find_study(client, study)
    if parent_id is not None:
        check_unclaimed(parent_id, tracking.find_run(client, parent_id).data.tags)
    folder = None if output is None else Path(resolve("--output", output, project))
    if folder is not None:
        _check_replaceable(prepare_folder(folder), parent_id)
    parent_id, failures = _run(client, study, project, concurrent, parent_id)
    folder = folder or Path(resolve("--output", Path("reports", f"ablation-{parent_id}"), project))
    _write_table(client, study, parent_id, folder)
    print("\n".join(tracking.viewing_lines(client, parent_id)), flush=True)
    if failures:
        reasons = "; ".join(f"{label} ({reason})" for label, reason in failures.items())
        raise StudyError(f"failed: {reasons}; python -m training.ablate --resume {parent_id} tries again")
    return parent_id


def _resolve(base: Config, project: Path) -> Config:
    data = resolve("data", base.data, project, must_exist=True)
    return replace(base, data=data, storage=resolve("storage", base.storage, project))


def _run(
    client: MlflowClient, study: Study, project: Path, concurrent: int, parent_id: str | None
) -> tuple[str, dict[str, str]]:
    """Run the trainings that are left; return the id of the parent run, and a line for each training that failed."""
    finished = {} if parent_id is None else finished_results(find_children(client, parent_id))
    trainings = plan_trainings(study, finished)
    if parent_id is not None and not trainings:
        print(f"study {parent_id} is complete: nothing is trained", flush=True)
        with claimed(client, parent_id):
            close_study(client, parent_id, study.base.storage, set(), "FINISHED")
        return parent_id, {}
    with contextlib.ExitStack() as ray_of_study:
        ray_of_study.enter_context(joined_ray())
        device, resources = _find_resources(study, concurrent)
        if parent_id is None:
            parent_id = create_study(client, study, project)
        with claimed(client, parent_id):
            status, failed = "FAILED", set[Key]()
            try:
                trials = _make_trials(client, study, project, parent_id, trainings, device, int(resources["CPU"]))
                print(
                    f"study {parent_id}: {len(study.keys) - len(finished)} of {len(study.keys)} runs left", flush=True
                )
                failures: dict[str, str] = {}
                while trials:
                    problems, trials = run_trials(trials, resources, concurrent)
                    failures |= problems
                    if trials:  # Tune itself has failed
                        ray_of_study.close()
                        ray_of_study.enter_context(joined_ray())
                failed = {key for training in trainings if label(training) in failures for key in training.views}
                status = "FAILED" if failures else "FINISHED"
            except KeyboardInterrupt:
                status = "KILLED"
                print(f"go on with: python -m training.ablate --resume {parent_id}", file=sys.stderr, flush=True)
                raise
            finally:
                ray_of_study.close()  # a training must not log into a run that has ended
                tracking.hurry_if_away(client)
                close_study(client, parent_id, study.base.storage, failed, status)
    return parent_id, failures


def _find_resources(study: Study, concurrent: int) -> tuple[str, dict[str, float]]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    device, resources = trial_resources(study.base.device, nodes, concurrent)
    if device == "cuda":
        check_gpus()
    check_compiler(study.base.compile, torch.device(device))
    return device, resources


def _make_trials(
    client: MlflowClient,
    study: Study,
    project: Path,
    parent_id: str,
    trainings: list[Training],
    device: str,
    threads: int,
) -> list[Trial]:
    with tracking.store_errors(client.tracking_uri):
        client.update_run(parent_id, status="RUNNING")
    ids = create_children(client, parent_id, study, study.keys, project)
    return [
        Trial(
            label=label(training),
            config=training.config,
            device=device,
            threads=threads,
            tracking_uri=client.tracking_uri,
            run_id=ids[training.key],
            views={ids[key]: crops for key, crops in training.views.items()},
        )
        for training in trainings
    ]


def label(training: Training) -> str:
    """Return a training's name on the terminal."""
    name, seed = training.key
    return f"{name}, seed {seed}"


def _check_replaceable(folder: Path, parent_id: str | None) -> None:
    """Raise `InputError` if the folder has the table of another study."""
    table = folder / TABLE
    if table.is_file() and (parent_id is None or parent_id not in table.read_text(encoding="utf-8")):
        raise InputError(f"--output is {folder}: it has the table of another study; use another folder")


def _write_table(client: MlflowClient, study: Study, parent_id: str, folder: Path) -> None:
    """Write the table as Markdown and CSV, and the picture, into a folder and into the parent run."""
    rows = make_rows(study, finished_results(find_children(client, parent_id)))
    epochs = f"{study.base.epochs} epochs, {read_manifest(study.base.data).name}"
    table = to_markdown(rows)
    files = {
        TABLE: f"{study.name}, {epochs}; MLflow run {parent_id}\n\n{table}".encode(),
        CSV: to_csv(rows).encode(),
        PICTURE: differences_png(rows, f"{study.name}, {epochs}"),
    }
    prepare_folder(folder)
    print(f"\n{table}", flush=True)
    with tracking.store_errors(client.tracking_uri):
        for name, content in files.items():
            atomic_write(folder / name, content)
            client.log_artifact(parent_id, str(folder / name))
        client.set_tag(parent_id, MLFLOW_RUN_NOTE, table)  # the description on the page of the run
    print(f"table {folder / TABLE}\npicture {folder / PICTURE}\nrun {parent_id}", flush=True)
