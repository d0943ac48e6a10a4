"""The training that those on several hosts are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trainings import Outcome


@pytest.fixture(scope="session")
def undisturbed(four_classes: Path) -> Outcome:
    """The same training on one device, in this process."""
    import torch
    from trainings import Outcome, training

    from training.loop.state import build_state
    from training.loop.train import train
    from training.parallel.layout import Layout
    from training.run import parse

    _, *arguments = map(str, training(four_classes, four_classes.parent))
    losses: dict[int, float] = {}

    def log(metrics: dict[str, float], step: int) -> None:
        if "train/loss" in metrics:
            losses[step] = metrics["train/loss"]

    state = build_state(parse(arguments), Layout(torch.device("cpu")), 1)
    train(state, log, lambda _state, _metrics: None)
    return Outcome("", "", state.eval_model.state_dict(), losses, 0.0)
