"""Tasks in a pool with their progress on stderr: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from tqdm import tqdm

from preprocess.plan import BuildOptions
from preprocess.run.pool import Counts, Result, Tally, Task, run_tasks

# Without a terminal: intervals grow with the elapsed time, so that a build of ten hours writes about a hundred lines.
_FIRST_LINE_SECONDS = 15.0
_LINE_FRACTION = 1 / 20
_LINE_SECONDS = 300.0


class BuildProgress(AbstractContextManager["BuildProgress"]):
    """Display of the images done and rejected, the rate, and the time left."""

    def __init__(self, what: str, total: int, before: int = 0, bad: str = "rejected") -> None:
        """Show nothing yet.

        `what` names the work, `total` counts its images, of which an earlier run has done `before` (not counted in the
        rate), and `bad` is the word for images that fail.
        """
        self._what, self._total, self._before, self._bad = what, total, before, bad
        self.counts = Counts()  # the last ones shown
        self._start = time.monotonic()
        self._next_line = self._start + _FIRST_LINE_SECONDS
        self._bar = tqdm(
            total=total, initial=before, desc=what, unit="img", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def show(self, counts: Counts) -> None:
        """Update the display."""
        self.counts = counts
        now = time.monotonic()
        seconds = max(now - self._start, 1e-3)
        speed = f"{counts.bytes / 1e6 / seconds:.1f} MB/s, {counts.rejected} {self._bad}"
        if not self._bar.disable:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(self._before + counts.images - self._bar.n)
        elif now >= self._next_line:
            self._next_line = now + min(max(seconds * _LINE_FRACTION, _FIRST_LINE_SECONDS), _LINE_SECONDS)
            done = self._before + counts.images
            rate = counts.images / seconds
            left = tqdm.format_interval((self._total - done) / rate) if rate else "?"
            print(
                f"{self._what}: {done}/{self._total} images, {rate:.0f} images/s, {left} left, {speed}",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def run_with_progress(
    function: Callable[[Task, Tally], Result],
    tasks: Sequence[Task],
    options: BuildOptions,
    progress: BuildProgress,
    check_counts: Callable[[Counts], None] | None = None,
) -> list[Result]:
    """Compute `function(task, tally)` for each task in the pool that the options select, as `run_tasks` does.

    `progress` shows the counts, and is closed at the end. `check_counts` is called with them, too; an exception ends
    the work.
    """

    def show(counts: Counts) -> None:
        progress.show(counts)
        if check_counts is not None:
            check_counts(counts)

    with progress:
        if options.ray is None:
            return run_tasks(function, tasks, options.workers, show)
        from preprocess.run.ray_pool import run_tasks_on_ray  # only this branch needs Ray

        return run_tasks_on_ray(function, tasks, options.ray, show)
