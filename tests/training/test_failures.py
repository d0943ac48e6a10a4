"""Failures of workers: what is tried again, what is said, and where a worker stands still."""

import threading
import time
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError

from errors import InputError
from pipeline.reading.samples import SampleError
from training.launch.failures import FailureReport, FinalError, RestartError, controller_failure, final_reason, summary
from training.launch.stall_watch import StallWatch
from training.loop.meter import DivergenceError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SampleError("sample x of shard y does not decode", 3), "y does not decode; use --on-bad-sample skip"),
        (SampleError("sample x of shard y does not decode", 3), "build_shards --output DIR --verify --deep"),
        (InputError("the index lists too few samples"), "the index lists too few samples"),
        (DivergenceError("the training loss is nan"), "the training loss is nan"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory.; use a smaller --batch-size"),
        (MemoryError(), "out of memory; use a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "or more --micro-batches"),
    ],
)
def test_an_error_that_would_come_again_is_final(error: Exception, said: str) -> None:
    assert said in (final_reason(error) or "")


@pytest.mark.parametrize("error", [RuntimeError("Connection closed by peer"), OSError("stale file handle")])
def test_an_error_that_may_pass_is_tried_again(error: Exception) -> None:
    assert final_reason(error) is None


def test_a_report_counts_the_restarts_and_ends_a_hopeless_training(capsys: pytest.CaptureFixture[str]) -> None:
    report = FailureReport(max_failures=1)
    run: Any = None
    report.after_exception(run, {1: OSError("stale file handle")})
    report.after_exception(run, {1: OSError("stale file handle")})
    first, second = capsys.readouterr().err.splitlines()
    assert first == ("worker 1 failed with OSError: stale file handle; restarting from the newest checkpoint (1 of 1)")
    assert second.endswith("; giving up")
    with pytest.raises(FinalError, match="no memory"):
        report.after_exception(run, {0: RuntimeError("Connection closed by peer"), 1: FinalError("no memory")})


def test_the_death_of_the_controller_is_one_line() -> None:
    killed = OutOfMemoryError("7 worker(s) were killed due to the node running low on memory.\nMemory on the node was")
    assert controller_failure(killed) == (
        "Ray Train's controller has died: 7 worker(s) were killed due to the node running low on memory.; use --resume"
    )


def test_the_worker_that_died_is_named_before_the_peers_it_left() -> None:
    lost = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer")
    assert summary({0: lost, 1: ActorDiedError()}) == "worker 1 died"
    assert summary({0: lost, 1: OSError("stale")}) == "worker 1 failed with OSError: stale"
    assert summary({0: lost}) == f"worker 0 failed with RuntimeError: {lost}"
    assert summary({0: RestartError("was asked to end")}) == "worker 0 was asked to end"


def test_a_worker_that_stands_still_is_named_with_its_stack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.stall_watch._OWN", (__file__,))
    batches, until = iter(range(20)), threading.Event()
    seen = [0]

    def train() -> None:
        StallWatch(3, lambda: seen[0], seconds=0.5)
        for seen[0] in batches:
            time.sleep(0.1)
        until.wait()

    thread = threading.Thread(target=train)
    thread.start()
    error, deadline = "", time.monotonic() + 30
    while "until.wait()" not in error and time.monotonic() < deadline:
        time.sleep(0.05)
        error += capsys.readouterr().err
    until.set()
    thread.join()
    assert seen == [19], "silent as long as there is progress"
    assert error.startswith("worker 3 has not moved on from tests/training/test_failures.py:")
    assert "until.wait()" in error
