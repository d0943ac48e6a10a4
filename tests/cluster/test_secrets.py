"""Secrets of the environment and of the project folder: looked for in all that the three jobs leave and show."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import copy_project
from test_cluster_local import Folder, kill_all, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "PGPASSWORD")
IN_A_FILE = "secret-of-a-file-in-the-project"
SMALL = "tiny-imagenet --epochs 1 --batch-size 4 --device cpu --optimizer.learning-rate 0.001"


def secret(variable: str) -> str:
    return f"secret-{variable.lower()}-7d1f"


SECRETS = {**{variable: secret(variable) for variable in VARIABLES}, ".env": IN_A_FILE}


class Lines:
    """The command lines of all processes of the machine, as `ps` shows them, and where a secret was in one."""

    def __init__(self) -> None:
        self.seen, self.leaks = 0, set[str]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(1):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    self.seen += "training.run" in line
                    if any(value in line for value in SECRETS.values()):
                        self.leaks.add(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """A copy of the project with a `.env`, whose services and commands have secrets in their environment."""
    folder = make_folder(tmp_path_factory.mktemp("secrets"))
    copy_project(folder.path)
    (folder.path / ".env").write_text(f"export PASSWORD={IN_A_FILE}\n")
    folder.environment |= {variable: secret(variable) for variable in VARIABLES}
    yield folder
    kill_all(folder)


def files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path


def test_no_secret_is_in_what_the_jobs_leave_and_show(folder: Folder, four_classes: Path, raw_folder: Path) -> None:
    up = folder.run(*folder.up())
    assert up.returncode == 0, up.stderr
    (services,) = (path for path in Path("/tmp").glob("twotower-*") if is_of(path, folder))
    shutil.copytree(raw_folder, folder.path / "data" / "tiny")
    upload = "ray job submit --working-dir . --"
    runs = folder.path / "runs"
    with Lines() as lines:
        build = "--input data/tiny --short-side 64 --max-rejected 0.02"
        said = folder.shell(up.stdout, f"ray job submit -- python -m preprocess.build_shards {build} --ray auto")
        train = f"{upload} python -m training.run {SMALL} --data {four_classes} --storage '{runs}'"
        said += folder.shell(up.stdout, train)
        run = next(path.name for path in runs.iterdir())
        evaluate = f"python -m training.evaluate --run {run} --data {four_classes} --output '{folder.path}/reports/own'"
        said += folder.shell(up.stdout, f"{upload} {evaluate}")
        said += folder.shell(up.stdout, "ray job list")
    assert lines.seen, "the processes were looked at while it trained"
    assert lines.leaks == set()
    assert [name for name, value in SECRETS.items() if value in up.stdout + up.stderr + said] == []
    uploaded = {path.name for path in files(services) if "working_dir_files" in path.parts}
    assert {"worker.py", "build_shards.py"} <= uploaded
    leaks = [
        f"{name} in {path}"
        for path in files(folder.path, services)
        if path != folder.path / ".env"
        for name, value in SECRETS.items()
        if value.encode() in path.read_bytes()
    ]
    assert leaks == []


def is_of(services: Path, folder: Folder) -> bool:
    return str(services) in (folder.path / ".cluster" / "local.json").read_text()
