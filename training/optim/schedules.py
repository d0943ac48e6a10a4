"""How the learning rates change over the steps and epochs of one training.

constant, linear, cosine   after a warm-up, a function of the step
script                     the rates of a log book, by epoch
equal-plateaus             `dexp` of the released code (lr.cu)
plateau                    by hand in 2012: divided by 10 when the validation error stops improving
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from training.config import Optimizer


class Schedule:
    """The learning rates of an optimiser that `make_optimizer` made."""

    def __init__(self, optimizer: SGD, config: Optimizer, steps_per_epoch: int, epochs: int) -> None:
        self._optimizer = optimizer
        self._by_step: LambdaLR | None = None
        self._by_error: ReduceLROnPlateau | None = None
        groups = optimizer.param_groups
        if config.schedule == "plateau":
            # Section 5: three divisions by 10 before termination, so never below a thousandth.
            lowest = [group["lr"] * 1e-3 for group in groups]
            self._by_error = ReduceLROnPlateau(optimizer, factor=0.1, patience=config.patience, min_lr=lowest, eps=0)
        else:
            factors = [_factor(config, group["layer"], group["biases"], steps_per_epoch, epochs) for group in groups]
            self._by_step = LambdaLR(optimizer, factors)

    @property
    def learning_rate(self) -> float:
        """The present one, of the weights that have none of their own."""
        return float(self._optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Move on by one optimiser step."""
        if self._by_step is not None:
            self._by_step.step()

    def after_epoch(self, validation_error: float) -> None:
        """Move on by one epoch that ended with this validation error (0 to 1)."""
        if self._by_error is not None:
            self._by_error.step(validation_error)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue the schedule."""
        if self._by_error is not None:
            return self._by_error.state_dict()
        assert self._by_step is not None
        return {"step": self._by_step.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the learning rates come with the optimiser's state."""
        if self._by_error is not None:
            self._by_error.load_state_dict(state)
        else:
            assert self._by_step is not None
            self._by_step.last_epoch = state["step"]


def _factor(config: Optimizer, layer: str, biases: bool, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """Return a group's learning rate at a step, as a part of the one that it begins with."""
    if config.schedule == "script":
        factors = _scripted_factors(config, layer, biases)
        return lambda step: factors[max(epoch for epoch in factors if epoch <= step // steps_per_epoch)]
    total = steps_per_epoch * epochs
    if config.schedule == "equal-plateaus":
        count, divisor = (config.bias_plateaus, config.bias_divisor) if biases else (config.plateaus, config.divisor)
        return lambda step: _equal_plateaus(min(step * count // total, count - 1), count, divisor)
    return partial(_after_warmup, config.schedule, config.warmup_epochs * steps_per_epoch, total)


def _scripted_factors(config: Optimizer, layer: str, biases: bool) -> dict[int, float]:
    """Return, by epochs that are done, a group's learning rate as a part of the one that it begins with."""
    if biases and config.bias_drops:
        first = config.learning_rate * config.bias_rate
        return {0: 1.0} | {epoch: rate / first for epoch, rate in config.bias_drops.items()}
    own = {} if biases else config.layer_drops.get(layer, {})
    shared = {epoch: rate for epoch, rate in config.drops.items() if not own or epoch < min(own)}
    first = config.learning_rate * config.layer_rates.get(layer, 1.0)
    return (
        {0: 1.0}
        | {epoch: rate / config.learning_rate for epoch, rate in shared.items()}
        | {epoch: rate / first for epoch, rate in own.items()}
    )


def _equal_plateaus(index: int, count: int, divisor: float) -> float:
    return float(divisor ** (-index / (count - 1))) if count > 1 else 1.0


def _after_warmup(kind: str, warmup: float, total: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = max(0.0, (total - step) / max(1.0, total - warmup))
    if kind == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return left if kind == "linear" else 1.0
