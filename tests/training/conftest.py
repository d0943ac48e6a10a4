"""A network trained in this process on the shared tiny shards, for tests of what comes after training."""

import dataclasses
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a few epochs: right about most of the val split, not about all of it."""
    import torch

    from training.checkpoint import write_checkpoint
    from training.parallel import Layout
    from training.recipes import RECIPES
    from training.worker import Session, open_session, snapshot, train

    folder = tmp_path_factory.mktemp("checkpoint")
    base = RECIPES["tiny-imagenet"]()
    config = dataclasses.replace(
        base,
        data=str(tiny_shards),
        epochs=3,
        batch_size=8,
        label_smoothing=0.0,
        network=dataclasses.replace(base.network, dropout=0.3),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=0.005),
    )

    def save(session: Session, metrics: dict[str, float]) -> None:
        if session.epoch == config.epochs:
            write_checkpoint(folder, *snapshot(session, "run", metrics))

    train(open_session(config, Layout(torch.device("cpu")), 1), lambda _metrics, _step: None, save)
    return folder
