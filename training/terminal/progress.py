"""Progress of a training: the first worker writes it to its output every second, the driver reads it there.

Ray brings the output of workers to the driver, from every node and after every restart, and no step waits for it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from dataclasses import asdict, dataclass

from training.loop.metrics import EPOCH, TOP1
from training.loop.state import TrainState

MARK = "twotower.progress "
"""Comes before a report in a worker's output."""
REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Report:
    """The state of a training at one moment."""

    epoch: int
    """Completed epochs."""
    epochs: int
    step: int
    """Completed optimizer steps."""
    steps: int
    """Optimizer steps of all epochs."""
    train: dict[str, float]
    """The newest point of the training curves, if there is one."""
    val: dict[str, float]
    """Metrics of the epoch that has just ended, `EPOCH` if it was not validated; none within an epoch."""
    ended: bool = False
    """True in the last report of a worker."""

    @property
    def is_validating(self) -> bool:
        """True between the last step of an epoch and its end."""
        return self.step * self.epochs == (self.epoch + 1) * self.steps


class ReportReader:
    """Finds the reports in the output of workers, also those that Ray hands on in two parts."""

    def __init__(self) -> None:
        self._begun: str | None = None

    def read(self, line: str) -> tuple[Report | None, bool]:
        """Return the report that a line without Ray's prefix completes, if any, and whether it is part of a report.

        Ray's log monitor takes what a worker has written so far of a line for a line.
        """
        _, mark, text = line.partition(MARK)
        if not mark:
            if self._begun is None:
                return None, False
            text = self._begun + line
        self._begun = None
        try:
            return Report(**json.loads(text)), True
        except (ValueError, TypeError):
            self._begun = text if mark else None
            return None, bool(mark)


class Progress:
    """Reports the progress of this worker, every second from a thread, and at the end of each epoch."""

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self._train: dict[str, float] = {}
        self._last: Report | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def show(self, metrics: dict[str, float]) -> None:
        """Report these metrics: at once if an epoch has ended with them, else within a second."""
        if TOP1 in metrics or EPOCH in metrics:
            self._report(metrics)
        else:
            self._train = metrics

    def close(self) -> None:
        """Report for the last time."""
        self._stop.set()
        self._thread.join()
        self._report({}, ended=True)

    def _run(self) -> None:
        self._report({})
        while not self._stop.wait(REPORT_SECONDS):
            self._report({})

    def _report(self, val: dict[str, float], *, ended: bool = False) -> None:
        state = self._state
        epochs = state.config.epochs
        steps = epochs * len(state.train_loader)
        with self._lock:
            report = Report(state.epoch, epochs, state.step, steps, self._train, val, ended)
            if report != self._last:
                self._last = report
                with contextlib.suppress(OSError):  # a full disk must not end the training
                    sys.stdout.write(f"{MARK}{json.dumps(asdict(report))}\n")
                    sys.stdout.flush()
