"""SGD as in section 5 of the 2012 paper, and the schedules of its learning rate."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from training.config import Optimizer

MOMENTUM = "momentum_buffer"
"""The name that `torch.optim.SGD` gives to a parameter's velocity."""


def make_optimizer(model: nn.Module, config: Optimizer) -> SGD:
    """Return SGD over all parameters of `model`: momentum and weight decay as configured, no Nesterov."""
    return SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)


def momentum_by_name(model: nn.Module, optimizer: SGD) -> dict[str, Tensor]:
    """Return the velocity of each parameter that has one; empty before the first step."""
    return {
        name: optimizer.state[parameter][MOMENTUM]
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get(MOMENTUM) is not None
    }


def load_momentum(model: nn.Module, optimizer: SGD, momentum: dict[str, Tensor]) -> None:
    """Put velocities back that `momentum_by_name` gave, in the layout of this device's parameters."""
    for name, parameter in model.named_parameters():
        if name in momentum:
            buffer = parameter.detach().new_empty(parameter.shape).copy_(momentum[name])
            optimizer.state[parameter][MOMENTUM] = buffer


class Schedule:
    """The learning rate over the steps and epochs of one training."""

    def __init__(self, optimizer: SGD, config: Optimizer, steps_per_epoch: int, epochs: int) -> None:
        total, warmup = steps_per_epoch * epochs, config.warmup_epochs * steps_per_epoch

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 1.0 if config.schedule != "linear" else max(0.0, (total - step) / max(1.0, total - warmup))

        self._by_step = LambdaLR(optimizer, factor) if config.schedule != "plateau" else None
        self._by_error = None
        if config.schedule == "plateau":
            # Section 5: three divisions by 10 before termination, so never below a thousandth.
            lowest = config.learning_rate * 1e-3
            self._by_error = ReduceLROnPlateau(optimizer, factor=0.1, patience=config.patience, min_lr=lowest)

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
        active = self._by_step or self._by_error
        assert active is not None
        return active.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the optimiser's learning rate comes from its own state."""
        active = self._by_step or self._by_error
        assert active is not None
        active.load_state_dict(state)
