"""The last lines of a training: how it ended, where everything is, and the commands that go on from there."""

from __future__ import annotations

import contextlib
import shlex

from training.config import Config
from training.launch.store import CheckpointStore
from training.loop.metrics import TOP1


def closing_lines(run_id: str, config: Config) -> list[str]:
    """Return the last lines of a training, but for those on MLflow.

    Args:
        run_id: id of the MLflow run.
        config: its configuration, with absolute paths.
    """
    lines, is_complete = [f"run {run_id}"], False
    with contextlib.suppress(OSError, ValueError):  # the storage may be away: the other lines count all the more
        store = CheckpointStore(config.storage, run_id)
        lines += _checkpoint_lines(store, run_id, config)
        is_complete = any(store.describe(step).epoch == config.epochs for step in store.steps()[-1:])
    if not is_complete:
        lines.append(f"resume with: python -m training.run --resume {run_id}")
    return lines


def _checkpoint_lines(store: CheckpointStore, run_id: str, config: Config) -> list[str]:
    # By the descriptions: the lines need no weights, which may lie in a bucket.
    steps, best = store.steps(), next(iter(store.ranked()), None)
    if not steps:
        return [f"no checkpoint in {store.root}"]
    lines, which = [], ""
    saved = None if best is None else store.describe(best)
    if saved is not None and TOP1 in saved.metrics:
        lines.append(f"top-1 {saved.metrics[TOP1]:.4f} after epoch {saved.epoch} of {config.epochs}")
    elif saved is not None:
        lines.append(f"epoch {saved.epoch} of {config.epochs}, not validated")
    lines.append(f"checkpoint {store.location(steps[-1])}")
    if best not in (None, steps[-1]):
        lines.append(f"best checkpoint {store.location(best)}")
        which = " --which best"
    data = "DIR" if saved is not None and TOP1 not in saved.metrics else shlex.quote(config.data)
    return [*lines, f"evaluate with: python -m training.evaluate --run {run_id}{which} --data {data}"]
