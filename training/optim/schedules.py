"""Learning rate schedules, by step and by epoch.

constant, linear, cosine   after a warm-up, a function of the step
piecewise                  milestones by epoch, as in a log book
geometric                  `dexp` of the released code (lr.cu)
plateau                    divided by 10 when the validation error stops improving; done by hand in 2012
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from training.config import Optimizer as OptimizerConfig

EXTENDED = {
    "constant": "the learning rates stay as they are",
    "linear": "from here on, the rates are those of the longer line",
    "cosine": "from here on, the rates are those of the longer curve",
    "plateau": "the rates go on falling with the validation error",
    "piecewise": "the last rates stay, unless a milestone is due later",
    "geometric": "from here on, the rates are those of the longer plateaus",
}
"""The effect of more epochs than planned, by schedule: some are defined by the number of all epochs."""


class Schedule:
    """The learning rates of an optimizer that `make_optimizer` made."""

    def __init__(self, optimizer: Optimizer, config: OptimizerConfig, steps_per_epoch: int, epochs: int) -> None:
        self._optimizer = optimizer
        self._scheduler: LambdaLR | ReduceLROnPlateau
        groups = optimizer.param_groups
        if config.schedule == "plateau":
            # Section 5: three divisions by 10 before termination, so never below a thousandth.
            lowest = [group["lr"] * 1e-3 for group in groups]
            self._scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=config.patience, min_lr=lowest, eps=0)
        else:
            factors = [_factor(config, group["layer"], group["biases"], steps_per_epoch, epochs) for group in groups]
            self._scheduler = LambdaLR(optimizer, factors)

    @property
    def learning_rate(self) -> float:
        """Present learning rate of the weights without a setting of their own."""
        return float(self._optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Advance by one optimizer step."""
        if isinstance(self._scheduler, LambdaLR):
            self._scheduler.step()

    def after_epoch(self, validation_error: float) -> None:
        """Advance by one epoch that ended with this validation error (0 to 1)."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(validation_error)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps, as JSON values; the learning rates are kept apart."""
        if isinstance(self._scheduler, LambdaLR):
            return {"step": self._scheduler.last_epoch}
        best = self._scheduler.best
        return {
            "epoch": self._scheduler.last_epoch,
            "best": best if math.isfinite(best) else None,
            "epochs_without_improvement": self._scheduler.num_bad_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the rates of `plateau` come with the optimizer state."""
        if isinstance(self._scheduler, LambdaLR):
            step = self._scheduler.last_epoch = state["step"]
            # Not the saved rates: with more epochs than before, those of this step are others.
            for group, factor in zip(self._optimizer.param_groups, self._scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(step)
        else:
            self._scheduler.last_epoch = state["epoch"]
            self._scheduler.best = math.inf if state["best"] is None else state["best"]
            self._scheduler.num_bad_epochs = state["epochs_without_improvement"]


def _factor(
    config: OptimizerConfig, layer: str, biases: bool, steps_per_epoch: int, epochs: int
) -> Callable[[int], float]:
    """Return a function of the step: a group's learning rate as a fraction of its first one."""
    if config.schedule == "piecewise":
        factors = _milestone_factors(config, layer, biases)
        return lambda step: factors[max(epoch for epoch in factors if epoch <= step // steps_per_epoch)]
    total = steps_per_epoch * epochs
    if config.schedule == "geometric":
        count, ratio = (config.bias_plateaus, config.bias_lr_ratio) if biases else (config.plateaus, config.lr_ratio)
        return lambda step: _geometric(min(step * count // total, count - 1), count, ratio)
    return partial(_after_warmup, config.schedule, config.warmup_epochs * steps_per_epoch, total)


def _milestone_factors(config: OptimizerConfig, layer: str, biases: bool) -> dict[int, float]:
    """Return a group's learning rate by completed epochs, as a fraction of its first one."""
    if biases and config.bias_milestones:
        first = config.learning_rate * config.bias_lr_scale
        return {0: 1.0} | {epoch: rate / first for epoch, rate in config.bias_milestones.items()}
    own = {} if biases else config.layer_milestones.get(layer, {})
    shared = {epoch: rate for epoch, rate in config.milestones.items() if not own or epoch < min(own)}
    first = config.learning_rate * config.layer_lr_scale.get(layer, 1.0)
    return (
        {0: 1.0}
        | {epoch: rate / config.learning_rate for epoch, rate in shared.items()}
        | {epoch: rate / first for epoch, rate in own.items()}
    )


def _geometric(index: int, count: int, ratio: float) -> float:
    return float(ratio ** (-index / (count - 1))) if count > 1 else 1.0


def _after_warmup(kind: str, warmup: float, total: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = max(0.0, (total - step) / max(1.0, total - warmup))
    if kind == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return left if kind == "linear" else 1.0
