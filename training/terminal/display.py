"""The driver's terminal while a training runs: one live line, or a plain line now and then, and what workers print."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from training.terminal.progress import Report, ReportReader

SECONDS_BETWEEN_LINES = 30.0
"""Without a terminal: longest silence within an epoch."""
LAST_SECONDS = 3.0
"""Longest wait for the last lines of the workers."""
REPEAT_SECONDS = 10.0
"""The same line of another worker within this time is not shown again."""

# As Ray puts it before each line of another process, in colour unless RAY_COLOR_PREFIX is 0.
_RAY_PREFIX = re.compile(r"(?:\x1b\[\d+m)?\((?:(?P<actor>\S+) )?pid=(?P<pid>\d+)(?:, ip=[^)]+)?\)(?:\x1b\[0m)? ")
_SHOWN_ACTORS = ("RayTrainWorker", "TrainController")
# Ray's own: its log in C++, and deaths of workers, which `training.launch` reports in a line of its own. Torch's: hosts
# whose addresses have no names.
_NOISE = re.compile(
    r"\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] |\(raylet\) A worker died or was killed "
    r"|\[W\S+ [\d:.]+ socket\.cpp:\d+\] \[c10d\] The hostname of the client socket cannot be retrieved"
)
_SAMPLE_LEFT_OUT = "left out: "  # of `pipeline`; later, another worker may come across the same sample


class Display(contextlib.AbstractContextManager["Display"]):
    """Shows the progress that a worker reports, between other lines; takes over stdout and stderr meanwhile.

    On a terminal the live line stays below all other lines. Lines of Ray's other processes lose its prefix, and are
    not shown if they repeat what another worker has just said, or are not about the training. Ray must be left before
    the end: it hands on lines of processes that are ending.
    """

    def __init__(self) -> None:
        self._is_live = sys.stdout.isatty() and sys.stderr.isatty()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._stack = contextlib.ExitStack()
        self._said: dict[str, tuple[str, float]] = {}  # by line: the process that printed it first, and when
        self._reports = ReportReader()
        self._pace: Pace | None = None
        self._last_line = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> Display:
        """Take over stdout and stderr."""
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        self._out, self._err = sys.stdout, sys.stderr
        self._stack.enter_context(contextlib.redirect_stdout(_Lines(sys.stdout, self._take)))
        self._stack.enter_context(contextlib.redirect_stderr(_Lines(sys.stderr, self._take)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give stdout and stderr back."""
        self._stack.close()

    @contextlib.contextmanager
    def live_line(self) -> Iterator[None]:
        """Show the live line while workers train; at the end, wait for their last lines."""
        if self._is_live:
            self._bar = tqdm(
                desc="starting the workers", bar_format="{desc}", file=self._err, leave=False, dynamic_ncols=True
            )
        try:
            yield
            self._ended.wait(LAST_SECONDS)
        finally:
            with self._lock:
                if self._bar is not None:
                    self._bar.close()
                    self._bar = None

    def _take(self, stream: TextIO, line: str) -> None:
        found = _RAY_PREFIX.match(line)
        text = line[found.end() :] if found else line
        with self._lock:
            report, is_part = self._reports.read(text)
            if report is not None:
                self._show(report)
            elif not is_part and self._is_to_print(text, found):
                self._print(text, stream)

    def _is_to_print(self, text: str, found: re.Match[str] | None) -> bool:
        """Tell whether to show a line, of which Ray's prefix is taken off."""
        if _NOISE.match(text) or (found and found["actor"] not in _SHOWN_ACTORS):
            return False
        return not (found and self._is_repeated(text, found["pid"]))

    def _is_repeated(self, text: str, pid: str) -> bool:
        now = time.monotonic()
        for old, (_, since) in list(self._said.items()):
            if now - since > REPEAT_SECONDS and not old.startswith(_SAMPLE_LEFT_OUT):
                del self._said[old]
        return self._said.setdefault(text, (pid, now))[0] != pid

    def _show(self, report: Report) -> None:
        if report.ended:
            self._ended.set()
            return
        self._ended.clear()
        if self._pace is None or report.step < self._pace.step:  # the first report, or the first after a restart
            self._pace = Pace(report.step)
        left = self._pace.time_left(report)
        if report.val:
            numbers = {**report.train, **report.val}
            numbers.pop("train/data_wait", None)
            self._print(f"epoch {report.epoch}/{report.epochs}: {_numbers(numbers)}{left}")
        elif self._bar is None and report.train and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._print(f"{_position(report)}, step {report.step}/{report.steps}: {_numbers(report.train)}{left}")
        if self._bar is not None:
            self._bar.total, self._bar.n = report.steps, report.step
            self._bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}"
            self._bar.set_description_str(_position(report), refresh=False)
            self._bar.set_postfix_str(f"{_numbers(report.train)}{left}")

    def _print(self, text: str, stream: TextIO | None = None) -> None:
        stream = stream or self._out
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.clear()
        stream.write(f"{text}\n")
        stream.flush()
        if self._bar is not None:
            self._bar.refresh()


class Pace:
    """The speed of a training since its workers have started."""

    def __init__(self, step: int) -> None:
        self._first, self._since = step, time.monotonic()
        self.step = step
        """Step of the newest report."""

    def time_left(self, report: Report) -> str:
        """Return `, [HH:]MM:SS left`; nothing as long as it is unknown, and at the end."""
        self.step = report.step
        done, to_do = report.step - self._first, report.steps - report.step
        if not done or not to_do:
            return ""
        seconds = (time.monotonic() - self._since) / done * to_do
        return f", {tqdm.format_interval(seconds)} left"


class _Lines:
    """Stands in for a stream: hands on complete lines of each thread, and everything else about it is the stream's."""

    def __init__(self, stream: TextIO, take: Callable[[TextIO, str], None]) -> None:
        self._stream, self._take = stream, take
        self._begun = threading.local()

    def write(self, text: str) -> int:
        """Hand on the lines that this text completes."""
        *lines, begun = (getattr(self._begun, "text", "") + text).split("\n")
        self._begun.text = begun
        for line in lines:
            self._take(self._stream, line)
        return len(text)

    def flush(self) -> None:
        """Hand on a line that has no end."""
        if getattr(self._begun, "text", ""):
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _position(report: Report) -> str:
    epoch = min(report.epoch + 1, report.epochs)
    return f"epoch {epoch}/{report.epochs}{', validating' if report.is_validating else ''}"


_FORMS = {
    "train/loss": "loss {:.4f}",
    "train/images_per_second": "{:.0f} images/s",
    "train/data_wait": "data wait {:.0%}",
    "val/loss": "val/loss {:.4f}",
    "val/top1": "val/top1 {:.4f}",
    "val/top5": "val/top5 {:.4f}",
    "train/skipped": "{:.0f} of train left out",
    "val/skipped": "{:.0f} of val left out",
}
"""How to show metrics; numbers of samples left out only if there are any."""


def _numbers(metrics: dict[str, float]) -> str:
    shown = {name: metrics[name] for name in _FORMS if name in metrics}
    return ", ".join(
        _FORMS[name].format(value) for name, value in shown.items() if value or not name.endswith("/skipped")
    )
