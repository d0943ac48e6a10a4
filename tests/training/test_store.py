"""The checkpoints of a run in its storage: what is kept, what is trusted, and a disk that fills up."""

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training.checkpoint import MODEL, PAGE, Checkpoint, Snapshot, read_checkpoint, read_model
from training.launch.store import BackgroundWriter, CheckpointStore

KEEP = 2


@pytest.fixture
def description(checkpoint: Path) -> Checkpoint:
    return read_checkpoint(checkpoint)


def snapshot(description: Checkpoint, step: int, top1: float | None = None, size: int = 4) -> Snapshot:
    metrics = {} if top1 is None else {"val/top1": top1}
    return Snapshot(
        dataclasses.replace(description, step=step, metrics=metrics), {"weight": torch.full((size,), float(step))}, {}
    )


@pytest.mark.parametrize("is_local", [True, False], ids=["disk", "bucket"])
def test_the_best_and_the_newest_are_kept_and_nothing_else(
    description: Checkpoint, tmp_path: Path, is_local: bool
) -> None:
    store = CheckpointStore(str(tmp_path), "run")
    store._is_local = is_local
    (tmp_path / "run" / ".partial-of-a-killed-process").mkdir(parents=True)
    for step, top1 in ((10, 0.5), (20, 0.9), (30, None), (40, 0.7), (50, None)):
        store.write(snapshot(description, step, top1), KEEP)
    assert (store.steps(), store.newest(), store.best()) == ([20, 40, 50], 50, 20)
    names = {path.name for path in (tmp_path / "run").iterdir()} - ({".partial-of-a-killed-process"} - {is_local})
    assert {"step-00000020", "step-00000040", "step-00000050"} <= names
    assert not is_local or len(names) == 3
    with store.fetch(50) as folder:
        assert read_model(folder / MODEL)["weight"].tolist() == [50.0] * 4


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", [MODEL, PAGE])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
    description: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    store = CheckpointStore(str(tmp_path), "run")
    for step in (10, 20):
        store.write(snapshot(description, step, 0.5), KEEP)
    truncate(tmp_path / "run" / "step-00000020" / name)
    assert store.newest() == 10
    error = capsys.readouterr().err
    assert f"step-00000020/{name}" in error
    assert error.endswith("the checkpoint before it is used\n")
    assert store.best() == 10, "of two that are equally good, the intact one"
    store.write(snapshot(description, 20, 0.6), KEEP)  # by the training that went on
    assert (store.newest(), store.best()) == (20, 20)


def test_a_training_that_goes_on_before_a_damaged_checkpoint_keeps_its_own(
    description: Checkpoint, tmp_path: Path
) -> None:
    store = CheckpointStore(str(tmp_path), "run")
    for step in (10, 20):
        store.write(snapshot(description, step, 0.5 + step / 1000), 2)
    truncate(tmp_path / "run" / "step-00000020" / MODEL)
    store.write(snapshot(description, 15, 0.4), 1)
    assert store.steps() == [10, 15], "the best and the last, and not the damaged one after them"


def test_a_damaged_best_checkpoint_is_named_and_the_next_best_used(
    description: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(str(tmp_path), "run")
    for step, top1 in ((10, 0.4), (20, 0.6), (30, 0.5)):
        store.write(snapshot(description, step, top1), 3)
    truncate(tmp_path / "run" / "step-00000020" / MODEL)
    assert store.best() == 30
    assert capsys.readouterr().err.endswith("the next best is used\n")


def test_an_error_of_another_kind_than_the_storage_s_ends_the_training(description: Checkpoint, tmp_path: Path) -> None:
    def record(_last: str, _best: str | None) -> None:
        raise ValueError("no such run")

    writer = BackgroundWriter(CheckpointStore(str(tmp_path), "run"), KEEP, lambda: None, record)
    writer.write(snapshot(description, 10, 0.5))
    with pytest.raises(ValueError, match="no such run"):
        writer.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_that_checkpoint_and_not_the_next(
    description: Checkpoint, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, recorded = CheckpointStore(str(small_disk), "run"), list[str]()
    writer = BackgroundWriter(store, KEEP, lambda: None, lambda last, _best: recorded.append(last))
    writer.write(snapshot(description, 10, 0.5))
    writer.write(snapshot(description, 20, 0.6, size=1 << 20))
    assert writer.wait() is not None
    assert "warning: no checkpoint of step 20: " in capsys.readouterr().err
    assert [path.name for path in (small_disk / "run").iterdir()] == ["step-00000010"]
    writer.write(snapshot(description, 30, 0.7))
    assert writer.wait() is None
    assert recorded == [store.location(10), store.location(30)]
    assert shutil.disk_usage(small_disk).used < 1 << 19
