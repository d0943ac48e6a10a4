"""The metrics of a run over its steps."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow import MlflowClient

from training.tracking.client import store_errors


def read_history(client: MlflowClient, run_id: str, metrics: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return the value of each metric at each step, steps ascending; metrics that the run does not have are left out.

    A step that was repeated after a restart has its last value.

    Raises:
        InputError: the store fails.
    """
    with store_errors(client.tracking_uri):
        points = {metric: client.get_metric_history(run_id, metric) for metric in metrics}
    return {
        metric: {point.step: point.value for point in sorted(history, key=lambda point: (point.step, point.timestamp))}
        for metric, history in points.items()
        if history
    }
