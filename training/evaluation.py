"""One evaluation: what is evaluated, where its results go, and how they get into MLflow runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.manifest import ClassEntry, Manifest
from training.ensemble import Ensemble
from training.report.metrics import Evaluated


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and where the results are written to."""

    ensemble: Ensemble
    data: str
    """The folder of shards."""
    manifest: Manifest
    classes: tuple[ClassEntry, ...]
    """The classes with their names for people."""
    evaluated: Evaluated
    name: str
    folder: Path


def log_evaluation(
    run_id: str, metrics: Mapping[str, float | None], folder: Path, files: Sequence[Path | str], name: str
) -> None:
    """Put metrics, those that have a value, and the `files` of `folder` into the MLflow run, under `evaluation/NAME`.

    Raises:
        SystemExit: it cannot, with code 1 and a line that says so.
    """
    from training import tracking  # MLflow takes seconds to import: weights and checkpoints do without

    try:
        client = tracking.open_client(tracking.tracking_uri(Path.cwd()))
        for metric, value in metrics.items():
            if value is not None:
                client.log_metric(run_id, metric, value)
        for path in files:
            client.log_artifact(run_id, str(folder / path), str(Path("evaluation", name, path).parent))
        tracking.update_description(client, run_id)
    except Exception as error:  # each kind of store has exceptions of its own
        sys.exit(f"error: run {run_id} has not taken the report: {tracking.describe(error)}; it is in {folder}")
