"""Progress of a long command: a bar on a terminal, lines elsewhere, and nothing when it is short."""

import io
import re

import pytest

from preprocess.run import progress
from preprocess.run.pool import Counts
from preprocess.run.progress import BuildProgress

SOME = Counts(images=400, bytes=40_000_000, rejected=3, reasons=("a.jpg: empty file",))


@pytest.fixture
def ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock finds it ten seconds later."""
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))


def test_lines_say_how_far_how_fast_and_how_long(ten_seconds: None, capsys: pytest.CaptureFixture[str]) -> None:
    with BuildProgress("building", 2000, before=1000) as display:
        display.show(SOME)  # after 10 s: too early to say anything
        assert capsys.readouterr().err == ""
        display.show(SOME)
    # 400 images in 20 s; those that were there before are no work of this run.
    line = "building: 1400/2000 images, 20 images/s, 00:30 left, 2.0 MB/s, 3 rejected\n"
    assert capsys.readouterr().err == line


def test_lines_grow_rare(ten_seconds: None, capsys: pytest.CaptureFixture[str]) -> None:
    with BuildProgress("building", 10_000) as display:
        for _ in range(900):
            display.show(SOME)
    assert 40 < len(capsys.readouterr().err.splitlines()) < 100


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    with BuildProgress("verifying", 500, bad="broken") as display:
        display.show(SOME)
    assert re.search(r"verifying:  80%\|.*400/500 .*img/s, [\d.]+ MB/s, 3 broken", terminal.getvalue())
