"""Environment variables of a training: for Ray, Ray Train and the libraries of their workers.

Ray reads its own when it is imported. This module imports no Ray, so that a command can set them before.
"""

from __future__ import annotations

import os

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
RAY_TRAIN_SETTINGS = {
    # The terminal leaves out by itself what several workers say.
    "RAY_DEDUP_LOGS": "0",
    # Started by `uv run`, Ray would make an environment for each worker: they have that of the command.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Interval of Ray Train's health checks in seconds; the end of a training, and of a worker, waits for one.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # After as many seconds without an answer a worker counts as dead: it is stopped, or its machine cannot be reached.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    # Workers' lines reach the terminal through Ray's log monitor; Ray Train would log them a second time.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
"""Settings of the command; a Ray that it starts, and all its processes, inherit them."""
WORKER_SETTINGS = {
    # Keep freed activations in the process: otherwise each step waits for zeroed pages. Glibc ignores a threshold for
    # mapped blocks above 2^25, and would then map the loader's batches again each time.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
"""Settings of the workers, on any cluster; read when a process starts."""
OWN_RAY_SETTINGS = {
    # It watches nodes that a cloud takes back, and costs a process on the cores that train.
    PREEMPTION_WATCHER: "0",
    # Ray's way to say "only this machine": all its ports are bound to 127.0.0.1, and with them those of the workers.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""Additional settings of a Ray that is started for one training."""


def starts_own_ray() -> bool:
    """Tell whether a training starts a Ray of its own: RAY_ADDRESS names no other one."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def set_ray_environment() -> None:
    """Set the variables that are not set, for the Ray that this process will join or start."""
    own = {**WORKER_SETTINGS, **OWN_RAY_SETTINGS} if starts_own_ray() else {}
    for name, value in {**RAY_TRAIN_SETTINGS, **own}.items():
        os.environ.setdefault(name, value)
