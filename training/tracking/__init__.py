"""MLflow: one run per training, however often its workers start again.

The life of a point of the curves: the worker hands it to a `MetricLog`. Its thread writes it to a `Spool`, files in the
run's storage, which are on disk before the next checkpoint is complete. From there a `Delivery` gives it to MLflow,
exactly once. At the end `finish` sends the rest and sets the run's state. Where MLflow is away, or the command was
killed, points and state wait in the storage until the next command that reads the run: `settle` sends them. `claim`
decides which process trains a run.
"""

from training.tracking.client import describe, hurry_if_away, open_client, shown_uri, store_errors, tracking_uri
from training.tracking.history import read_history
from training.tracking.metric_log import MetricLog
from training.tracking.run_text import EPOCHS, update_description
from training.tracking.runs import (
    BEST_CHECKPOINT,
    CONFIG_NAME,
    LAST_CHECKPOINT,
    STUDY,
    create_run,
    fetch_artifact,
    fetch_checkpoint,
    find_run,
    mark_running,
    resume_run,
    start_run,
    viewing_lines,
)
from training.tracking.settle import UNSETTLED, finish, settle
from training.tracking.source import environment
from training.tracking.system_metrics import SystemMetrics

__all__ = [
    "BEST_CHECKPOINT",
    "CONFIG_NAME",
    "EPOCHS",
    "LAST_CHECKPOINT",
    "STUDY",
    "UNSETTLED",
    "MetricLog",
    "SystemMetrics",
    "create_run",
    "describe",
    "environment",
    "fetch_artifact",
    "fetch_checkpoint",
    "find_run",
    "finish",
    "hurry_if_away",
    "mark_running",
    "open_client",
    "read_history",
    "resume_run",
    "settle",
    "shown_uri",
    "start_run",
    "store_errors",
    "tracking_uri",
    "update_description",
    "viewing_lines",
]
