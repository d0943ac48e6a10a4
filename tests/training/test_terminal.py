"""The driver's terminal: what workers print there, the live line, plain lines, and the last lines."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from training.config import Config, Network
from training.launch.store import CheckpointStore
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import train
from training.parallel.layout import Layout
from training.recipes import RECIPES
from training.terminal.closing import closing_lines
from training.terminal.display import Display
from training.terminal.progress import MARK, Progress, Report

WORKER, OTHER_WORKER = "(RayTrainWorker pid=17) ", "(RayTrainWorker pid=18, ip=10.0.0.2) "
CURVES = {"train/loss": 1.25, "train/lr": 0.01, "train/images_per_second": 640.4, "train/data_wait": 0.032}
VAL = {"val/loss": 0.5, "val/top1": 0.75, "val/top5": 1.0}
EPOCH = "loss 1.2500, 640 images/s, val/loss 0.5000, val/top1 0.7500, val/top5 1.0000"


def report(**changes: Any) -> str:
    """Return a report as it comes to the driver."""
    plain = Report(epoch=0, epochs=2, step=4, steps=20, train=CURVES, val={})
    return f"{WORKER}{MARK}{json.dumps(dataclasses.asdict(dataclasses.replace(plain, **changes)))}"


@contextlib.contextmanager
def display_on(out: TextIO, err: TextIO) -> Iterator[None]:
    """Show a training on these streams; its worker ends in order."""
    # Not in a fixture: pytest takes over stdout and stderr again after it.
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), Display() as display, display.live_line():
        yield
        print(report(ended=True))


class Pipes:
    """Stdout and stderr that are no terminal."""

    def __init__(self) -> None:
        self._out, self._err = io.StringIO(), io.StringIO()

    def display(self) -> contextlib.AbstractContextManager[None]:
        return display_on(self._out, self._err)

    def lines(self) -> tuple[list[str], list[str]]:
        """Return the lines on stdout and on stderr."""
        return self._out.getvalue().splitlines(), self._err.getvalue().splitlines()


class Terminal:
    """A pseudo terminal of 100 columns as stdout and stderr."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        os.set_blocking(self._master, False)
        self._stream = os.fdopen(slave, "w")
        self._lines, self._column = [""], 0

    def display(self) -> contextlib.AbstractContextManager[None]:
        return display_on(self._stream, self._stream)

    def screen(self) -> list[str]:
        """Return the lines to be seen, without an empty one at the end."""
        with contextlib.suppress(BlockingIOError):
            while True:
                for character in os.read(self._master, 65536).decode():
                    self._type(character)
        lines = [line.rstrip() for line in self._lines]
        return lines if lines[-1] else lines[:-1]

    def _type(self, character: str) -> None:
        if character == "\n":
            self._lines.append("")
        elif character == "\r":
            self._column = 0
        else:
            line = self._lines[-1]
            self._lines[-1] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1


def test_on_a_terminal_one_live_line_stays_below_all_others() -> None:
    terminal = Terminal()
    with terminal.display():
        assert terminal.screen() == ["starting the workers"]
        print(report(step=0, train={}))
        print(report())
        (live,) = terminal.screen()
        assert live.startswith("epoch 1/2  20%|")
        assert "| step 4/20, loss 1.2500, 640 images/s, data wait 3%, 00:" in live
        assert live.endswith(" left")
        print(f"{WORKER}warning: a disk is full", file=sys.stderr)
        print("saving a checkpoint", file=sys.stderr)
        print(report(step=10))
        *lines, live = terminal.screen()
        assert lines == ["warning: a disk is full", "saving a checkpoint"]
        assert live.startswith("epoch 1/2, validating  50%|")
        print(report(epoch=1, step=10, val={**VAL, "train/skipped": 2, "val/skipped": 0}))
        line, live = terminal.screen()[2:]
        assert line.startswith(f"epoch 1/2: {EPOCH}, 2 of train left out, 00:")
        assert live.startswith("epoch 2/2  50%|")
        print(report(epoch=2, step=20, val=VAL))
    assert terminal.screen()[3:] == [f"epoch 2/2: {EPOCH}"], "no live line is left"


def test_elsewhere_there_is_a_line_per_epoch_and_one_in_a_long_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = Pipes()
    with pipes.display():
        for step in range(11):
            print(report(step=step))
        print(report(epoch=1, step=10, val=VAL))
        monkeypatch.setattr("training.terminal.display.SECONDS_BETWEEN_LINES", 0.0)
        print(report(epoch=1, step=12))
    (first, second), errors = pipes.lines()
    assert first.startswith(f"epoch 1/2: {EPOCH}, 00:")
    assert second.startswith("epoch 2/2, step 12/20: loss 1.2500, 640 images/s, data wait 3%, 00:")
    assert errors == []


@pytest.mark.parametrize("length", [len(WORKER + MARK), len(WORKER + MARK) + 89, -1])
def test_a_report_that_comes_in_two_parts_is_shown_as_one(length: int) -> None:
    pipes, complete = Pipes(), report(epoch=1, step=10, val=VAL)
    with pipes.display():
        print(complete[:length])
        print(f"{WORKER}{complete[length:]}")
        print(report(epoch=1, step=11)[:length])  # of a worker that was killed
        print(f"{OTHER_WORKER}one")
        print(report(epoch=2, step=20, val=VAL))
    (first, one, last), errors = pipes.lines()
    assert first.startswith(f"epoch 1/2: {EPOCH}")
    assert one == "one"
    assert last.startswith(f"epoch 2/2: {EPOCH}")
    assert errors == []


def test_the_time_left_is_measured_anew_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes, now = Pipes(), [1000.0]
    monkeypatch.setattr("training.terminal.display.time.monotonic", lambda: now[0])
    with pipes.display():
        print(report(step=0))
        now[0] += 40  # 4 s a step
        print(report(epoch=1, step=10, val=VAL))
        now[0] += 3600
        print(report(step=8, train={}))
        now[0] += 4  # 2 s a step
        print(report(epoch=1, step=10, val=VAL))
    assert [line.rpartition(", ")[2] for line in pipes.lines()[0]] == ["00:40 left", "00:20 left"]


def test_lines_of_workers_lose_ray_s_prefix_and_come_once() -> None:
    pipes = Pipes()
    with pipes.display():
        print(f"\x1b[36m{WORKER.strip()}\x1b[0m one", file=sys.stderr)
        print(f"{OTHER_WORKER}one", file=sys.stderr)  # each rank has the same warnings
        print(f"{WORKER}one", file=sys.stderr)  # this worker says it again
        print(f"{OTHER_WORKER}two", file=sys.stderr)
        print("(TrainController pid=5) worker 1 died", file=sys.stderr)
        print("(raylet) 1 workers killed due to memory pressure", file=sys.stderr)
        print("(raylet) A worker died or was killed while executing a task by an unexpected error. To troubleshoot")
        print("[W1130 08:50:48.842711269 socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved.")
        print(
            "(TrainController pid=5) [2026-11-29 11:10:34,305 E 6903 6933] core_worker.cc:2465: Actor with class name"
        )
        print("(PlacementGroupCleaner pid=6) Traceback (most recent call last):", file=sys.stderr)
    shown = ["one", "one", "two", "worker 1 died", "(raylet) 1 workers killed due to memory pressure"]
    assert pipes.lines() == ([], shown)


def test_a_sample_left_out_is_named_once_even_if_another_worker_meets_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes, now = Pipes(), [1000.0]
    monkeypatch.setattr("training.terminal.display.time.monotonic", lambda: now[0])
    with pipes.display():
        for worker in (WORKER, OTHER_WORKER):
            print(f"{worker}left out: train-000000.tar: sample a does not decode", file=sys.stderr)
            print(f"{worker}something else", file=sys.stderr)
            now[0] += 3600
    shown = ["left out: train-000000.tar: sample a does not decode", "something else", "something else"]
    assert pipes.lines() == ([], shown)


def test_lines_of_several_threads_do_not_mix() -> None:
    pipes, texts = Pipes(), [letter * 40 for letter in "abcd"]

    def write(text: str) -> None:
        for _ in range(200):
            print(text[:20], end="")
            print(text[20:])

    with pipes.display():
        threads = [threading.Thread(target=write, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("no end", end="", flush=True)
    assert sorted(pipes.lines()[0]) == sorted([*texts * 200, "no end"])


@pytest.fixture(scope="module")
def config(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    base = RECIPES["tiny-imagenet"]()
    storage = str(tmp_path_factory.mktemp("terminal") / "my runs")
    small = {"network": Network("alexnet-small"), "crop": 28, "batch_size": 16, "log_every": 2}
    return dataclasses.replace(base, data=str(tiny_shards), epochs=2, storage=storage, **small)


@pytest.mark.parametrize("log_every", [100, 2])
def test_a_training_is_shown_as_it_is(config: Config, capfd: pytest.CaptureFixture[str], log_every: int) -> None:
    config = dataclasses.replace(config, log_every=log_every)
    torch.set_num_threads(1)
    store = CheckpointStore(config.storage, "a-run")
    state = build_state(config, Layout(torch.device("cpu")), 1)
    progress = Progress(state)
    ends: list[dict[str, float]] = []

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        ends.append(metrics)
        store.write(capture_checkpoint(state, "a-run", metrics), 2)

    train(state, lambda metrics, _step: progress.show(metrics), save)
    progress.close()
    sent = capfd.readouterr().out
    with Display() as display, display.live_line():
        for line in sent.splitlines():
            print(f"{WORKER}{line}")
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2
    for epoch, (line, metrics) in enumerate(zip(lines, ends, strict=True), 1):
        assert line.startswith(f"epoch {epoch}/2: loss ")
        assert f"val/loss {metrics['val/loss']:.4f}, val/top1 {metrics['val/top1']:.4f}" in line


def test_the_last_lines_say_where_all_is_and_what_to_type(config: Config, tiny_shards: Path) -> None:
    """After the training of the test before."""
    stem = f"{config.storage}/a-run/step-0000"
    store = CheckpointStore(config.storage, "a-run")
    top1 = {step: store.describe(step).metrics["val/top1"] for step in store.steps()}
    best = store.best()
    assert best is not None
    found = closing_lines("a-run", config)
    better = [] if best == 12 else [f"best checkpoint {stem}{best:04d}"]
    assert found == [
        "run a-run",
        f"top-1 {top1[best]:.4f} after epoch {best // 6} of 2",
        f"checkpoint {stem}0012",
        *better,
        f"evaluate with: python -m training.evaluate --run a-run{' --which best' * len(better)} --data {tiny_shards}",
    ]
    assert closing_lines("other", config) == [
        "run other",
        f"no checkpoint in {config.storage}/other",
        "resume with: python -m training.run --resume other",
    ]
    lost = dataclasses.replace(config, storage="nothing://of-this-kind/runs")
    resume = "resume with: python -m training.run --resume a-run"
    assert closing_lines("a-run", lost)[:2] == ["run a-run", resume]
