"""`python -m training.runs`: the trainings of the MLflow store, newest first, and how to resume them and studies."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from command_line import CommandParser
from training import tracking
from training.ablation.study import settle_study
from training.cli import run_command
from training.loop.metrics import EPOCH, TOP1
from training.tracking.claim import OWNER

HEADER = ("run", "recipe", "state", "epoch", "top-1", "started", "checkpoint")
STATES = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}


def main(arguments: Sequence[str]) -> None:
    """Print the trainings of the store as a table, then the commands that resume the unfinished ones."""
    parser = CommandParser(prog="python -m training.runs", description="List the trainings of the store.")
    parser.parse_args(arguments)
    client = tracking.open_client(tracking.tracking_uri(Path.cwd()))
    with tracking.store_errors(client.tracking_uri):
        claimed = runs_with_owner(client)
        found = [tracking.settle(client, run) for run in claimed if tracking.STUDY not in run.data.tags]
        studies = [settle_study(client, run) for run in claimed if tracking.STUDY in run.data.tags]
        rows = [HEADER, *(row(client, run) for run in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    for run in found:
        if run.info.status in ("FAILED", "KILLED"):
            print(f"python -m training.run --resume {run.info.run_id}")
    for run in studies:
        if run.info.status in ("FAILED", "KILLED"):
            print(f"python -m training.ablate --resume {run.info.run_id}")


def runs_with_owner(client: MlflowClient) -> list[Run]:
    """Return all runs of trainings and of ablation studies, newest first; not the trainings of a study."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(experiments, max_results=1000, order_by=["start_time DESC"], page_token=token)
        runs += [run for run in page if OWNER in run.data.tags]
        token = page.token
        if not token:
            return runs


def row(client: MlflowClient, run: Run) -> tuple[str, ...]:
    """Return the cells of a run, in the order of `HEADER`."""
    tags = run.data.tags
    metrics = run.data.metrics
    epochs = int(metrics.get(EPOCH, 0)) or len(client.get_metric_history(run.info.run_id, TOP1))
    top1 = metrics.get(TOP1)
    return (
        run.info.run_id,
        run.data.params.get("recipe", ""),
        STATES.get(run.info.status, run.info.status.lower()),
        f"{epochs}/{tags.get(tracking.EPOCHS, '?')}",
        "" if top1 is None else f"{top1:.4f}",
        f"{datetime.timedelta(seconds=int(time.time() - run.info.start_time / 1000))} ago",
        tags.get(tracking.LAST_CHECKPOINT, "none"),
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
