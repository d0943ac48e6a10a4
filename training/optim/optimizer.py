"""SGD as in section 5 of the 2012 paper: its two forms, what is particular to a layer or to biases, and frozen layers.

A layer is named as in the network (`conv1`, `features.0`): a parameter `conv1.bias` belongs to layer `conv1`. What a
checkpoint keeps is by parameter name, so that it does not depend on the groups or on the layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from errors import InputError
from training.config import Optimizer

MOMENTUM = "momentum_buffer"
"""The name that `torch.optim.SGD` gives to a parameter's velocity."""


class Sgd2012(SGD):
    """SGD whose velocity holds the learning rate: v <- m v - lr (g + decay w), w <- w + v (section 5 of the paper).

    torch keeps b = -v / lr instead. At a constant rate the two are the same; after a drop, torch's whole velocity
    shrinks at once, while that of 2012 goes on with what it has gathered at the old rate. So here torch's buffer is
    scaled by old rate / new rate whenever the rate of its group has changed, and all else is torch's.
    """

    def settle(self) -> None:
        """Express the velocities in the present learning rates, as `step` does first."""
        for group in self.param_groups:
            before, rate = group.get("settled_lr", group["lr"]), group["lr"]
            if rate == 0:
                continue  # nothing can be expressed in it; `linear` and `cosine` end so, with no step to follow
            if rate != before:
                states = (self.state[parameter] for parameter in group["params"])
                buffers = [state[MOMENTUM] for state in states if state.get(MOMENTUM) is not None]
                if buffers:
                    torch._foreach_mul_(buffers, before / rate)
            group["settled_lr"] = rate

    def step(self, closure: Any = None) -> Any:
        """Take one step; see `torch.optim.SGD.step`."""
        self.settle()
        return super().step(closure)


def make_optimizer(model: nn.Module, config: Optimizer) -> SGD:
    """Return SGD over the parameters of `model`, in one fused pass over each group.

    Weights and biases are in groups of their own, and so are those of each layer that the configuration names. A group
    has `layer` (empty: all that have none of their own) and `biases`; the first group is that of the plain weights,
    where there are any.

    Raises:
        InputError: the configuration names a layer that `model` has not.
    """
    named = _named_layers(config)
    _check_known(model, named)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        groups.setdefault((layer if layer in named else "", kind == "bias"), []).append(parameter)
    form = Sgd2012 if config.form == "2012" else SGD
    return form(
        [_group(config, *key, groups[key]) for key in sorted(groups)],
        lr=config.learning_rate,
        momentum=config.momentum,
        fused=True,
    )


def _group(config: Optimizer, layer: str, biases: bool, parameters: list[nn.Parameter]) -> dict[str, Any]:
    rate = config.learning_rate * config.layer_rates.get(layer, 1.0) * (config.bias_rate if biases else 1.0)
    decay = 0.0 if biases and not config.bias_decay else config.layer_decays.get(layer, config.weight_decay)
    return {"params": parameters, "lr": rate, "weight_decay": decay, "layer": layer, "biases": biases}


def _named_layers(config: Optimizer) -> set[str]:
    return {*config.layer_rates, *config.layer_decays, *config.layer_drops, *config.freeze}


def _layers(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def _check_known(model: nn.Module, named: Iterable[str]) -> None:
    layers = _layers(model)
    for layer in sorted(named):
        if layer not in layers:
            raise InputError(f"optimizer names a layer {layer!r}; this network has {', '.join(layers)}")


def check_layers(model: nn.Module, config: Optimizer, epochs: int) -> None:
    """Raise `InputError` unless `model` has the layers that are named, and one is left to train until the end."""
    _check_known(model, _named_layers(config))
    if all(config.freeze.get(layer, epochs) < epochs for layer in _layers(model)):
        raise InputError(
            f"optimizer.freeze is {config.freeze}: no layer is left to train until epoch {epochs}; leave one out"
        )


def freeze_layers(model: nn.Module, config: Optimizer, epoch: int) -> bool:
    """Freeze the layers whose time has come when `epoch` epochs are done; return whether that is news.

    A frozen parameter has no gradient, so that the optimiser skips its update, decay and momentum alike, as the
    released code does at a rate of 0 (weights.cu). A wrapper that waits for its gradient must be made anew.
    """
    news = False
    for name, parameter in model.named_parameters():
        at = config.freeze.get(name.rpartition(".")[0])
        if at is not None and at <= epoch and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None
            news = True
    return news


def momentum_by_name(model: nn.Module, optimizer: SGD) -> dict[str, Tensor]:
    """Return torch's momentum buffer of each parameter that has one; empty before the first step.

    In the form of 2012 it is the velocity over the negative present learning rate.
    """
    if isinstance(optimizer, Sgd2012):
        optimizer.settle()
    return {
        name: optimizer.state[parameter][MOMENTUM]
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get(MOMENTUM) is not None
    }


def load_momentum(model: nn.Module, optimizer: SGD, momentum: dict[str, Tensor]) -> None:
    """Put buffers back that `momentum_by_name` gave, in the layout of this device's parameters."""
    for name, parameter in model.named_parameters():
        if name in momentum:
            # With the parameter's strides: the fused step reads all three tensors in the order of their memory.
            optimizer.state[parameter][MOMENTUM] = torch.empty_like(parameter.detach()).copy_(momentum[name])


def rates_by_name(model: nn.Module, optimizer: SGD) -> dict[str, float]:
    """Return the present learning rate of each parameter."""
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters()}


def load_rates(model: nn.Module, optimizer: SGD, rates: dict[str, float]) -> None:
    """Put learning rates back that `rates_by_name` gave; to be called with the buffers of the same moment."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = group["settled_lr"] = rates[names[id(group["params"][0])]]
