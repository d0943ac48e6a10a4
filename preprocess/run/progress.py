"""Progress of a long command on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from preprocess.run.pool import Counts

# Elsewhere than on a terminal: the first line after so many seconds, the others each time that a twentieth of the
# time has passed, so that a build of ten hours writes some hundred lines and not thousands.
_FIRST_LINE_SECONDS = 15.0
_LINE_FRACTION = 1 / 20
_LINE_SECONDS = 300.0


class Progress:
    """Shows how many images of `total` are done, how fast, how long it takes yet, and how many were rejected."""

    def __init__(self, what: str, total: int, before: int = 0, bad: str = "rejected") -> None:
        """Show nothing yet.

        Args:
            what: the line's first word.
            total: how many images there are.
            before: how many of them were done by an earlier run; no rate counts them.
            bad: what the images are called that are not good.
        """
        self._what, self._total, self._before, self._bad = what, total, before, bad
        self._start = time.monotonic()
        self._next_line = self._start + _FIRST_LINE_SECONDS
        self._bar = tqdm(
            total=total, initial=before, desc=what, unit="img", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def show(self, counts: Counts) -> None:
        """Bring the display up to date."""
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

    def __enter__(self) -> Progress:
        """Return the display itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
