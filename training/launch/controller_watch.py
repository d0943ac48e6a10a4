"""Watches a training from Ray Train's controller: what it waits for, and a checkpoint before its width changes."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.util.state import list_actors, list_jobs

from training.launch.resources import Resources
from training.launch.store import CheckpointStore

FIRST_SECONDS, WAIT_SECONDS = 5.0, 30.0
"""Time without room for the workers before the command says so, and between two such lines."""
POLL_SECONDS = 0.5


class ControllerWatch(ControllerCallback):
    """Hooks of Ray Train's controller, an interface of its developers: there is no public one."""

    def __init__(self, storage: str, run_id: str, resources: Resources, grace_seconds: float) -> None:
        self._storage, self._run_id, self._resources, self._grace = storage, run_id, resources, grace_seconds
        self._is_running = False

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002
        """Begin to look for resources that are missing."""
        threading.Thread(target=self._report_waits, name="waits", daemon=True).start()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ARG002
        """Note whether workers run; before they are replaced by more or fewer, let them save a checkpoint."""
        state = type(current_state).__name__
        self._is_running = state == "RunningState"
        if state == "ResizingState":
            workers = current_state.scaling_decision.num_workers
            print(f"continuing with {workers} workers, from the newest checkpoint", file=sys.stderr, flush=True)
            self._save()

    def _save(self) -> None:
        store = CheckpointStore(self._storage, self._run_id)
        deadline = time.monotonic() + self._grace
        with contextlib.suppress(OSError):  # without it, the training continues from an earlier checkpoint
            before = store.steps()[-1:]
            store.request("save")
            while store.steps()[-1:] == before and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def _report_waits(self) -> None:
        waited = 0.0
        while True:
            time.sleep(POLL_SECONDS)
            waited = 0.0 if self._is_running or not self._is_waiting() else waited + POLL_SECONDS
            if waited and (waited - FIRST_SECONDS) % WAIT_SECONDS == 0:
                print(self._report(), file=sys.stderr, flush=True)

    def _is_waiting(self) -> bool:
        groups = ray.util.placement_group_table().values()
        ours = [group for group in groups if self._resources.per_worker in group["bundles"].values()]
        if len(self._resources.widths) == 1:
            return any(group["stats"]["scheduling_state"] in ("NO_RESOURCES", "INFEASIBLE") for group in ours)
        # An elastic training asks for a group only when there is room for the smallest one.
        free, workers = ray.available_resources(), self._resources.widths[0] * self._resources.model
        lacks = any(free.get(kind, 0) < workers * amount for kind, amount in self._resources.per_worker.items())
        return lacks and not any(group["state"] == "CREATED" for group in ours)

    def _report(self) -> str:
        bundle, workers = self._resources.per_worker, self._resources.widths[0] * self._resources.model
        total, free = ray.cluster_resources(), ray.available_resources()
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in bundle.items())
        there = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in bundle)
        return f"waiting for room for {workers} workers with {each} each; the cluster has {there}{_holders(bundle)}"


def _holders(kinds: dict[str, float]) -> str:
    """Return which jobs hold resources of these kinds, as far as Ray's dashboard tells."""
    try:
        address = ray.get_runtime_context().gcs_address
        actors = list_actors(address, filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
        commands = {job.job_id: job.entrypoint for job in list_jobs(address, detail=True)}
    except Exception:  # there is no dashboard, or it does not answer: the line is shorter
        return ""
    mine = ray.get_runtime_context().get_job_id()
    held = Counter(
        actor.job_id for actor in actors if actor.job_id != mine and set(actor.required_resources or {}) & set(kinds)
    )
    jobs = (f"{count} actors of job {job} ({commands.get(job, 'unknown')})" for job, count in held.most_common())
    return "".join(f"; held: {job}" for job in jobs)
