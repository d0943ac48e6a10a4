"""Ray Tune: the trainings of a study, some at once."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.progress_reporter import TrialProgressCallback

from errors import InputError
from training.ablation.trial import Trial, run_trial
from training.loop.metrics import TOP1
from training.tracking import describe

TUNE_SETTINGS = {
    # Its new output prints a box of settings, however little is asked for.
    "RAY_AIR_NEW_OUTPUT": "0",
    # The results of a study are in MLflow; Tune would write each of them into three files more.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A cluster that is busy with other jobs is waited for.
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1e9",
}
_NUMBER, _EPOCH, _PROBLEM = "number", "epoch", "problem"


def trial_resources(
    requested: Literal["auto", "cpu", "cuda"], nodes: Sequence[dict[str, float]], concurrent: int
) -> tuple[Literal["cpu", "cuda"], dict[str, float]]:
    """Return the device of a training and its resources as Ray counts them: a share of the cores, or a GPU.

    Args:
        requested: field `device` of the configuration.
        nodes: resources of each node, such as `CPU` and `GPU`.
        concurrent: trainings at once.

    Raises:
        InputError: the cluster has fewer devices than that.
    """
    gpus, cpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    device: Literal["cpu", "cuda"] = "cuda" if requested == "cuda" or (requested == "auto" and gpus) else "cpu"
    devices = gpus if device == "cuda" else cpus
    if not devices:
        raise InputError(f"device is {requested}: the cluster has {cpus} CPU cores and {gpus} GPUs; use --device auto")
    if concurrent > devices:
        raise InputError(f"--concurrent is {concurrent}: the cluster has {devices} {device} devices; use at most those")
    # A training runs on one node.
    if device == "cuda":
        cores = min(node.get("CPU", 0) // node["GPU"] for node in nodes if node.get("GPU"))
    else:
        cores = min(cpus // concurrent, max(node.get("CPU", 0) for node in nodes))
    return device, {"CPU": max(1, int(cores)), **({"GPU": 1} if device == "cuda" else {})}


def run_trials(
    trials: Sequence[Trial], resources: dict[str, float], concurrent: int
) -> tuple[dict[str, str], list[Trial]]:
    """Run trainings on the Ray that this process has joined.

    One that fails does not stop the others; but Tune itself ends at some deaths of a process, such as Ray's own kills
    where memory is short. What it was running has then failed.

    Returns:
        A line for the label of each training that failed, and the trainings that Tune left behind: Ray must be joined
        anew for them, since its resources are still taken.

    Raises:
        KeyboardInterrupt: it was interrupted; the trainings go on until Ray is left.
    """
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what comes of a trial, we say
    progress, ended = _Progress(list(trials)), Future[None]()
    # In a thread of its own, Tune does not take over Ctrl-C. It is a daemon: without Ray, it may hang.
    threading.Thread(target=_fit, args=(progress, resources, concurrent, ended), name="tune", daemon=True).start()
    try:
        ended.result()
    except Exception as error:
        if not progress.running:
            raise
        progress.end_running(describe(error))
    return progress.problems, progress.waiting


def _fit(progress: _Progress, resources: dict[str, float], concurrent: int, ended: Future[None]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix="tune-") as folder:
            Tuner(
                tune.with_resources(tune.with_parameters(_train, trials=progress.trials), resources),
                param_space={_NUMBER: tune.grid_search(list(range(len(progress.trials))))},
                tune_config=TuneConfig(max_concurrent_trials=concurrent),
                run_config=RunConfig(
                    name="ablation",
                    storage_path=folder,
                    verbose=0,
                    callbacks=[progress],
                    failure_config=FailureConfig(max_failures=0),
                ),
            ).fit()
        ended.set_result(None)
    except BaseException as error:
        ended.set_exception(error)


def _train(numbers: dict[str, int], trials: list[Trial]) -> None:
    """Run one training in Tune's process, and report its epochs, then its end."""
    trial, epoch = trials[numbers[_NUMBER]], 0

    def report(metrics: dict[str, float]) -> None:
        nonlocal epoch
        epoch += 1
        tune.report({_EPOCH: epoch, TOP1: metrics[TOP1]})

    tune.report({_PROBLEM: run_trial(trial, report)})


class _Progress(TrialProgressCallback):
    """Prints a line for each epoch and each end of a training, and keeps what failed and what is left.

    Tune adds a callback of this kind, which prints more, unless it is given one.
    """

    def __init__(self, trials: list[Trial]) -> None:
        super().__init__()
        self.trials = trials
        self.problems: dict[str, str] = {}
        self._started, self._ended = set[int](), set[int]()

    @property
    def running(self) -> list[int]:
        """The numbers of the trainings that have started and not ended."""
        return sorted(self._started - self._ended)

    @property
    def waiting(self) -> list[Trial]:
        """The trainings that have not started."""
        return [trial for number, trial in enumerate(self.trials) if number not in self._started]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Note a training that starts."""
        self._started.add(trial.config[_NUMBER])

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Print an epoch; note how a training has ended."""
        told = self.trials[trial.config[_NUMBER]]
        if _EPOCH in result:
            epochs = f"epoch {result[_EPOCH]}/{told.config.epochs}"
            print(f"{told.label}: {epochs}, {TOP1} {result[TOP1]:.4f}", flush=True)
        else:
            self._end(trial.config[_NUMBER], result[_PROBLEM])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print nothing: a training has reported its end."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Note a training whose process died."""
        error = trial.get_pickled_error()
        self._end(trial.config[_NUMBER], "its process died" if error is None else describe(error))

    def end_running(self, problem: str) -> None:
        """Note that all trainings that are running have failed."""
        for number in self.running:
            self._end(number, problem)

    def _end(self, number: int, problem: str | None) -> None:
        self._started.add(number)
        self._ended.add(number)
        label, count = self.trials[number].label, f"{len(self._ended)} of {len(self.trials)} trainings"
        if problem is None:
            print(f"{label}: finished, {count}", flush=True)
            return
        self.problems[label] = problem
        print(f"{label}: failed, {count}: {problem}", file=sys.stderr, flush=True)
