"""The checkpoints of a run in its storage: one folder per checkpoint in STORAGE/RUN_ID, on a disk or in a bucket.

Ray Train's own record of checkpoints is not used: it is rewritten in place, and a run whose record is cut off, or names
a folder that is gone, cannot be continued.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import safetensors.torch
from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileType, LocalFileSystem, copy_files
from safetensors import SafetensorError
from torch import Tensor

from atomic_files import atomic_write, flush
from errors import InputError
from object_store import check_uri, explain, is_uri, join, open_filesystem, with_retries
from training.checkpoint import (
    PAGE,
    Checkpoint,
    Snapshot,
    checkpoint_name,
    read_checkpoint,
    read_description,
    write_checkpoint,
)
from training.loop.metrics import EPOCH, TOP1

T = TypeVar("T")
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial-"
INITIAL = "initial.safetensors"
"""The weights that a training with `--init` starts from: its source may be out of the workers' reach, or change."""


def check_storage(storage: str) -> None:
    """Raise `InputError` unless files can be written to `storage`, an absolute path or a URI; leave nothing there."""
    if is_uri(storage):
        check_uri(storage)
    try:
        filesystem, path = open_filesystem(storage)
        if isinstance(filesystem, LocalFileSystem):
            # Tried where a folder is: one that a refused training would leave behind is not made.
            folder = next(parent for parent in (Path(path), *Path(path).parents) if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                return
        probe = f"{path.rstrip('/')}/.writable-{uuid.uuid4().hex}"
        with filesystem.open_output_stream(probe) as file:
            file.write(b"1")
        filesystem.delete_file(probe)
    except (OSError, ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        reason = f"({explain(error)})" if is_uri(storage) else f"({reason}); use another folder"
        raise InputError(f"storage is {storage}: no file can be written there {reason}") from error


class CheckpointStore:
    """The checkpoints of one run, named by their steps; only complete ones are listed.

    `storage` is an absolute path or a URI.
    """

    def __init__(self, storage: str, run_id: str) -> None:
        self._filesystem, path = open_filesystem(storage)
        self._folder = f"{path.rstrip('/')}/{run_id}"
        self.root = join(storage, run_id)
        """Path or URI of the folder of the run."""
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._initial_path = f"{self._folder}/{INITIAL}"

    def location(self, step: int) -> str:
        """Return the path or URI of the checkpoint of a step."""
        return join(self.root, checkpoint_name(step))

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, ascending."""
        found = self._tried(partial(self._filesystem.get_file_info, FileSelector(self._folder, allow_not_found=True)))
        names = [_NAME.fullmatch(info.base_name) for info in found if info.type == FileType.Directory]
        return sorted(int(name[1]) for name in names if name and self._has_page(int(name[1])))

    @contextmanager
    def fetch(self, step: int) -> Iterator[Path]:
        """Lend a local folder that holds the checkpoint of a step."""
        if self._is_local:
            yield Path(self._path(step))
            return
        with tempfile.TemporaryDirectory() as folder:
            self._tried(partial(copy_files, self._path(step), folder, self._filesystem))
            yield Path(folder)

    def describe(self, step: int) -> Checkpoint:
        """Return the description of the checkpoint of a step; raise `InputError` if it cannot be read."""
        with tempfile.TemporaryDirectory() as folder:
            self._tried(partial(copy_files, f"{self._path(step)}/{PAGE}", f"{folder}/{PAGE}", self._filesystem))
            return read_description(Path(folder))

    def newest(self) -> int | None:
        """Return the step of the newest intact checkpoint; name on stderr those that are damaged."""
        return self._first_intact(self.steps()[::-1], "the checkpoint before it is used")

    def best(self) -> int | None:
        """Return the step of the intact checkpoint with the highest `val/top1`; None if no epoch was completed.

        Without validation it is the newest one at the end of an epoch. Damaged ones are named on stderr.
        """
        return self._first_intact(self.ranked(), "the next best is used")

    def ranked(self) -> list[int]:
        """Return the steps of the checkpoints at the end of an epoch, the best first, by their descriptions only."""
        ends = ((self._top1(step), step) for step in self.steps())
        return [step for _, step in sorted(((top1, step) for top1, step in ends if top1 is not None), reverse=True)]

    def write(self, snapshot: Snapshot, keep: int) -> int | None:
        """Write a checkpoint, then remove all but the best one and the last `keep`; return the step of the best.

        Raises:
            OSError: it cannot be written; the earlier ones are untouched.
        """
        step = snapshot.description.step
        if self._is_local:
            self._write_local(snapshot, Path(self._path(step)))
        else:
            with tempfile.TemporaryDirectory() as folder:
                write_checkpoint(Path(folder), snapshot)
                self._upload(Path(folder), step)
        for damaged in self.steps():  # those after this one: the training has come from an earlier checkpoint
            if damaged > step:
                self._remove(damaged)
        best = next(iter(self.ranked()), None)
        for old in self.steps()[:-keep]:
            if old != best:
                self._remove(old)
        return best

    def write_initial(self, state: dict[str, Tensor]) -> None:
        """Write the weights that the training starts from; raise `InputError` if they cannot be written."""
        try:
            self._filesystem.create_dir(self._folder)
            content = safetensors.torch.save(state)
            if self._is_local:
                atomic_write(Path(self._initial_path), content)
            else:
                with self._filesystem.open_output_stream(self._initial_path) as file:
                    file.write(content)
        except OSError as error:
            raise InputError(f"storage is {self.root}: {error}; use a folder or bucket that can be written") from error

    def has_initial(self) -> bool:
        """Tell whether `write_initial` has been completed."""
        return self._tried(lambda: self._filesystem.get_file_info(self._initial_path)).type == FileType.File

    def read_initial(self) -> dict[str, Tensor]:
        """Return what `write_initial` was given, on the CPU; raise `InputError` if it is missing or damaged."""
        try:
            with self._filesystem.open_input_file(self._initial_path) as file:
                return safetensors.torch.load(file.read())
        except (FileNotFoundError, SafetensorError) as error:  # not where the storage is away for a while
            raise InputError(f"{join(self.root, INITIAL)} cannot be read: {error}; start the training again") from error

    def request(self, what: Literal["save", "stop"]) -> None:
        """Ask the training of this run to save a checkpoint, and go on or stop."""
        self._filesystem.create_dir(self._folder)
        self._filesystem.open_output_stream(f"{self._folder}/{what}").close()

    def is_requested(self, what: Literal["save", "stop"]) -> bool:
        """Tell whether the training of this run has been asked to save or to stop."""
        return self._filesystem.get_file_info(f"{self._folder}/{what}").type == FileType.File

    def withdraw_requests(self, *which: Literal["save", "stop"]) -> None:
        """Forget earlier requests; without arguments, all."""
        for what in which or ("save", "stop"):
            if self.is_requested(what):
                self._filesystem.delete_file(f"{self._folder}/{what}")

    def _write_local(self, snapshot: Snapshot, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{_PARTIAL}*"):  # by a process that was killed: only one writes at a time
            shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
        try:
            write_checkpoint(partial, snapshot)
            shutil.rmtree(target, ignore_errors=True)  # of the same step, damaged or about to be replaced
            partial.replace(target)
            flush(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _upload(self, folder: Path, step: int) -> None:
        if self._has_page(step):  # of the same step, damaged or about to be replaced
            self._remove(step)
        target = self._path(step)
        self._tried(partial(self._filesystem.create_dir, target))
        # The description comes last: a folder without it is no checkpoint.
        for file in sorted(folder.iterdir(), key=lambda file: file.name == PAGE):
            to = f"{target}/{file.name}"
            self._tried(partial(copy_files, str(file), to, destination_filesystem=self._filesystem))

    def _remove(self, step: int) -> None:
        # The description goes first: without it, what a store has not removed yet is no checkpoint.
        with suppress(FileNotFoundError):  # removed by a first try whose answer was lost
            self._tried(partial(self._filesystem.delete_file, f"{self._path(step)}/{PAGE}"))
        self._tried(partial(self._filesystem.delete_dir, self._path(step)))

    def _tried(self, request: Callable[[], T]) -> T:
        """Return what a request returns; a bucket that fails is asked again."""
        return request() if self._is_local else with_retries(request)

    def _first_intact(self, steps: Iterable[int], otherwise: str) -> int | None:
        for step in steps:
            with self.fetch(step) as folder:
                try:
                    read_checkpoint(folder)
                    return step
                except InputError as error:
                    print(f"warning: {error}; {otherwise}", file=sys.stderr, flush=True)
        return None

    def _top1(self, step: int) -> float | None:
        """Return `val/top1` of a checkpoint, -1 without validation; None within an epoch."""
        try:
            saved = self.describe(step)
        except InputError:  # damaged
            return None
        return saved.metrics.get(TOP1, -1.0 if EPOCH in saved.metrics else None)

    def _has_page(self, step: int) -> bool:
        page = f"{self._path(step)}/{PAGE}"
        return self._tried(lambda: self._filesystem.get_file_info(page)).type == FileType.File

    def _path(self, step: int) -> str:
        return f"{self._folder}/{checkpoint_name(step)}"


class BackgroundWriter:
    """Writes checkpoints in a thread, one at a time; a failure costs the checkpoint, not the training.

    In the thread, `prepare` is called before each is written, and `record` afterwards with the locations of the last
    and the best one.
    """

    def __init__(
        self,
        store: CheckpointStore,
        keep: int,
        prepare: Callable[[], object],
        record: Callable[[str, str | None], None],
    ) -> None:
        self._store, self._keep, self._prepare, self._record = store, keep, prepare, record
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._fault: Exception | None = None

    def write(self, snapshot: Snapshot) -> None:
        """Begin to write; wait first for the checkpoint before."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def wait(self) -> OSError | None:
        """Wait for the checkpoint that is being written; return the error if the storage did not take it.

        Raises:
            Exception: it failed in another way, which would come again.
        """
        if self._thread is not None:
            self._thread.join()
        if self._fault is not None:
            raise self._fault
        return self._error

    def _run(self, snapshot: Snapshot) -> None:
        self._error = None
        step = snapshot.description.step
        try:
            self._prepare()
            best = self._store.write(snapshot, self._keep)
            self._record(self._store.location(step), None if best is None else self._store.location(best))
        except OSError as error:
            self._error = error
            print(f"warning: no checkpoint of step {step}: {error}; the training goes on", file=sys.stderr, flush=True)
        except Exception as error:
            self._fault = error
