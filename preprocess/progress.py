"""Progress of a long command on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_SECONDS = 15.0


class Progress:
    """Shows how many images of `total` are done and how many of them were rejected."""

    def __init__(self, what: str, total: int) -> None:
        """Show nothing yet; `what` is the line's first word."""
        self._what = what
        self._total = total
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, desc=what, unit="img", disable=not sys.stderr.isatty())

    def show(self, done: int, rejected: int) -> None:
        """Bring the display up to date."""
        self._bar.set_postfix(rejected=rejected, refresh=False)
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            rate = done / (now - self._start)
            print(
                f"{self._what}: {done}/{self._total} images, {rate:.0f} images/s, {rejected} rejected",
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
