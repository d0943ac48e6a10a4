"""Use of CPU, memory, disk, network and GPUs of the machine that a worker runs on, as metrics of the run."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from types import TracebackType

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from training.tracking.metric_log import MetricLog

SAMPLE_SECONDS = 10.0
"""Time between two points."""
CLOSE_SECONDS = 5.0
"""Longest wait for MLflow to take the last points; the end of the training sends them as well."""


class SystemMetrics:
    """Logs MLflow's system metrics while it is entered, by a metric log of its own.

    Their step is the time since the run was created, in units of `SAMPLE_SECONDS`: it rises over restarts of the
    worker, also while no server could tell the last one.
    """

    def __init__(self, uri: str, run_id: str, storage: str, created: float, *, is_only_node: bool) -> None:
        """Prepare for a run; `created` is the time of its creation, in seconds since 1970.

        With other nodes, the metrics have the name of this one: `system/NODE/...`.
        """
        node = re.sub(r"[^\w.-]", "-", socket.gethostname())
        self._prefix = "system/" if is_only_node else f"system/{node}/"
        self._created = created
        self._log = MetricLog(uri, run_id, storage, writer=f"system-{node}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system metrics", daemon=True)

    def __enter__(self) -> SystemMetrics:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)
        if error is None:
            self._log.close(CLOSE_SECONDS)
        else:  # the worker is to be replaced soon
            self._log.flush()

    def _sample(self) -> None:
        logging.getLogger(GPUMonitor.__module__).setLevel(logging.ERROR)  # it warns at every sample of part of a GPU
        monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(Exception):  # no driver, no GPU
            monitors.append(GPUMonitor())
        _read(monitors)  # the use of the CPU is that since the last reading
        while not self._stop.wait(SAMPLE_SECONDS):
            metrics = _read(monitors)
            step = int((time.time() - self._created) / SAMPLE_SECONDS)
            self._log.log({f"{self._prefix}{name}": value for name, value in metrics.items()}, step)


def _read(monitors: list[BaseMetricsMonitor]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        metrics |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return metrics
