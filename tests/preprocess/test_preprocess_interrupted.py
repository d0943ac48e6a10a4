"""Builds that are cut short, as real processes: what they leave, what they say, and that nothing runs on."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from commands import PROJECT
from PIL import Image
from raw_data import encoded
from shard_reading import changed_files, file_identities, folder_bytes

from preprocess.build_shards import main

IMAGES = 80
SHARDS = 5
FIRST_RECORD = ".unfinished/[tv]*-*.json"
DEADLINE_SECONDS = 120


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few classes, large images: every shard takes a while."""
    root = tmp_path_factory.mktemp("slow") / "slow"
    data = encoded(Image.linear_gradient("L").resize((2000, 2000)).convert("RGB"), quality=75)
    for number in range(IMAGES):
        folder = root / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(data)
    for name in "ab":
        (root / "val" / name).mkdir(parents=True)
        (root / "val" / name / "1.jpg").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def undisturbed(slow_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(arguments(slow_folder, output)) == 0
    return folder_bytes(output)


def arguments(source: Path, output: Path) -> list[str]:
    options = ("--short-side", 64, "--shard-samples", 20, "--workers", 2)
    return [str(part) for part in ("--input", source, "--output", output, *options)]


def heed_interrupts() -> None:
    """Take SIGINT as at a terminal: a test run that was itself started with `&` would hand down that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def running(
    source: Path, output: Path, before: Callable[[], None] = heed_interrupts, until: str = ".train-*.partial"
) -> Iterator[subprocess.Popen]:
    """A build in a session of its own; by default, in the middle of its first shards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess.build_shards", *arguments(source, output)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,
    )
    try:
        wait_until(lambda: list(output.glob(until)) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def alive(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("whole_group", [True, False])
def test_interrupted_before_a_shard_is_finished_it_leaves_nothing(
    slow_folder: Path, tmp_path: Path, number: int, code: int, whole_group: bool
) -> None:
    output = tmp_path / "out"
    with running(slow_folder, output) as process:
        (os.killpg if whole_group else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == code
        assert (out, err) == ("", "build_shards: interrupted; no shard was finished\n")
        assert not output.exists()
        wait_until(lambda: not alive(process.pid))


@pytest.mark.parametrize(
    ("interrupt", "code", "said"),
    [
        (lambda process: os.killpg(process.pid, signal.SIGTERM), 143, "interrupted"),
        (lambda process: workers_of(process)[0].kill(), 1, "a worker process died: it was killed, or memory ran out"),
    ],
    ids=["signal", "dead worker"],
)
def test_finished_shards_are_kept_and_the_rest_is_built(
    slow_folder: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    interrupt: Callable[[subprocess.Popen], None],
    code: int,
    said: str,
) -> None:
    output = tmp_path / "out"
    with running(slow_folder, output, until=FIRST_RECORD) as process:
        interrupt(process)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, out) == (code, "")
        wait_until(lambda: not alive(process.pid))
    kept = [path.stem for path in output.glob(FIRST_RECORD)]
    assert err == f"build_shards: {said}; finished shards are kept ({len(kept)}): the same command continues\n"
    whole = {f"{stem}.{ending}" for stem in kept for ending in ("tar", "idx")}
    assert not list(output.rglob("*.partial"))
    before = file_identities(output)
    assert main(arguments(slow_folder, output)) == 0
    assert f"{SHARDS - len(kept)} of {SHARDS} shards built" in capsys.readouterr().out
    assert folder_bytes(output) == undisturbed
    assert not changed_files(output, before) & whole


@pytest.mark.parametrize("whole_group", [True, False])
def test_killed_it_leaves_no_data_set_and_no_process_and_is_built_again(
    slow_folder: Path, undisturbed: dict[str, bytes], tmp_path: Path, whole_group: bool
) -> None:
    output = tmp_path / "out"
    with running(slow_folder, output) as process:
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_SECONDS)
        wait_until(lambda: not alive(process.pid))
    left = folder_bytes(output)
    assert left
    assert "manifest.json" not in left
    # What was written without a record; and the partial file of a writer on another node.
    for name in ("train-000003.tar", ".val-000000.idx.node-7-88.partial", "mean.npy"):
        (output / name).write_bytes(b"old")
    (output / ".unfinished" / "drawn" / "train").mkdir(parents=True)
    assert main(arguments(slow_folder, output)) == 0
    assert folder_bytes(output) == undisturbed


def test_a_second_build_keeps_out_and_one_in_the_background_ignores_ctrl_c(
    slow_folder: Path, undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    # As a shell starts a command with `&`.
    with running(slow_folder, output, lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as process:
        assert main(arguments(slow_folder, output)) == 2
        assert capsys.readouterr().err == (
            f"build_shards: --output is {output}: another build is writing into it; use another folder\n"
        )
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 0, err
        assert "interrupted" not in err
        assert out.startswith("slow: 80 train + 2 val samples")
    assert folder_bytes(output) == undisturbed


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(slow_folder: Path, tmp_path: Path) -> None:
    # A limit on the size of files stands in for a full disk: the same call fails, with another number.
    limit = 30_000  # more than the compiled colour sums take, in memory
    process = subprocess.run(
        [sys.executable, "-m", "preprocess.build_shards", *arguments(slow_folder, tmp_path / "out")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "build_shards: cannot build: File too large; no shard was finished\n"
    assert not (tmp_path / "out").exists()


def test_ctrl_c_during_the_imports_is_no_traceback(slow_folder: Path, tmp_path: Path) -> None:
    # A module that takes long to import, in place of one that a slow disk holds.
    (tmp_path / "argparse.py").write_text("import os, time\nos.write(1, b'importing')\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess.build_shards", *arguments(slow_folder, tmp_path / "out")],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.read(9) == b"importing"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=DEADLINE_SECONDS) == (b"", b"")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 2>&-"])
def test_closed_streams_end_up_in_no_shard(
    slow_folder: Path, undisturbed: dict[str, bytes], tmp_path: Path, closed: str
) -> None:
    command = [sys.executable, "-m", "preprocess.build_shards", *arguments(slow_folder, tmp_path / "out")]
    process = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command], cwd=PROJECT, check=False, timeout=DEADLINE_SECONDS
    )
    assert process.returncode == 0
    assert folder_bytes(tmp_path / "out") == undisturbed
