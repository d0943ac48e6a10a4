"""SGD of section 5 of the 2012 paper: momentum form, settings by layer and for biases, frozen layers, and the EMA.

Layers are named as in the network (`conv1`, `features.0`): the parameter `conv1.bias` belongs to the layer `conv1`.
State is saved by parameter name, so it depends neither on the parameter groups nor on the layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from errors import InputError
from training.config import Optimizer as OptimizerConfig

MOMENTUM = "momentum_buffer"
"""The name that `torch.optim.SGD` gives to a parameter's velocity."""


class Sgd2012(SGD):
    """SGD with the learning rate inside the velocity: v <- m v - lr (g + decay w), w <- w + v (paper, section 5).

    torch keeps b = -v / lr instead. At a constant rate both are the same; when the rate drops, torch's velocity shrinks
    at once, while that of 2012 keeps what it gathered at the old rate. So this class scales torch's buffer by
    old rate / new rate whenever the rate of a group has changed.
    """

    def rescale_momentum(self) -> None:
        """Rescale the momentum buffers to the present learning rates; `step` does so first."""
        for group in self.param_groups:
            before, rate = group.get("momentum_lr", group["lr"]), group["lr"]
            if rate == 0:
                continue  # `linear` and `cosine` end at 0, and no step follows
            if rate != before:
                states = (self.state[parameter] for parameter in group["params"])
                buffers = [state[MOMENTUM] for state in states if state.get(MOMENTUM) is not None]
                if buffers:
                    torch._foreach_mul_(buffers, before / rate)
            group["momentum_lr"] = rate

    def step(self, closure: Any = None) -> Any:
        """Take one step; see `torch.optim.SGD.step`."""
        self.rescale_momentum()
        return super().step(closure)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> SGD:
    """Return fused SGD over the parameters of `model`.

    Weights and biases have separate groups, and so has each layer that the configuration names. A group has the keys
    `layer` (empty for all other layers) and `biases`; the first group holds the weights of all other layers, if any.

    Raises:
        InputError: the configuration names a layer that `model` does not have.
    """
    named = _named_layers(config)
    _check_known(model, named)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        groups.setdefault((layer if layer in named else "", kind == "bias"), []).append(parameter)
    form = Sgd2012 if config.momentum_form == "2012" else SGD
    return form(
        [_group(config, *key, groups[key]) for key in sorted(groups)],
        lr=config.learning_rate,
        momentum=config.momentum,
        fused=True,
    )


def _group(config: OptimizerConfig, layer: str, biases: bool, parameters: list[nn.Parameter]) -> dict[str, Any]:
    rate = config.learning_rate * config.layer_lr_scale.get(layer, 1.0) * (config.bias_lr_scale if biases else 1.0)
    decay = 0.0 if biases and not config.bias_decay else config.layer_weight_decay.get(layer, config.weight_decay)
    return {"params": parameters, "lr": rate, "weight_decay": decay, "layer": layer, "biases": biases}


def _named_layers(config: OptimizerConfig) -> set[str]:
    return {*config.layer_lr_scale, *config.layer_weight_decay, *config.layer_milestones, *config.freeze}


def _layers(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def _check_known(model: nn.Module, named: Iterable[str]) -> None:
    layers = _layers(model)
    for layer in sorted(named):
        if layer not in layers:
            raise InputError(f"optimizer names the layer {layer!r}, which is unknown; use {', '.join(layers)}")


def check_layers(model: nn.Module, config: OptimizerConfig, epochs: int) -> None:
    """Raise `InputError` unless `model` has the named layers, and at least one layer trains until the end."""
    _check_known(model, _named_layers(config))
    if all(config.freeze.get(layer, epochs) < epochs for layer in _layers(model)):
        raise InputError(
            f"optimizer.freeze is {config.freeze}: no layer is left to train until epoch {epochs}; leave out a layer"
        )


def freeze_layers(model: nn.Module, config: OptimizerConfig, epoch: int) -> bool:
    """Freeze the layers that are due after `epoch` epochs; return whether any layer was frozen now.

    A frozen parameter has no gradient, so the optimizer skips its update, decay and momentum, as the released code does
    at a rate of 0 (weights.cu). A DDP wrapper that waits for its gradient must be made again.
    """
    frozen = False
    for name, parameter in model.named_parameters():
        at = config.freeze.get(name.rpartition(".")[0])
        if at is not None and at <= epoch and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None
            frozen = True
    return frozen


def start_momentum(optimizer: Optimizer) -> None:
    """Begin all velocities with 0, as the first step would.

    The fused SGD of torch 2.15 makes them at its first step, even at one that is left out because a gradient has
    overflowed: they are then read before they are written.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter].setdefault(MOMENTUM, torch.zeros_like(parameter))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return torch's state of the parameters by state key (such as `momentum_buffer`) and parameter name.

    It is empty before the first step. In the form of 2012 the momentum buffer is the velocity divided by the negative
    present learning rate.
    """
    if isinstance(optimizer, Sgd2012):
        optimizer.rescale_momentum()
    state: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                state.setdefault(key, {})[name] = value
    return state


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, dict[str, Tensor]]) -> None:
    """Restore what `optimizer_state` returned, in the layout of this device's parameters."""
    for name, parameter in model.named_parameters():
        for key, values in state.items():
            if name in values:
                # With the parameter's strides: the fused step reads all three tensors in the order of their memory.
                like = parameter.detach() if values[name].shape == parameter.shape else values[name]
                restored = torch.empty_like(like, device=parameter.device).copy_(values[name])
                optimizer.state[parameter][key] = restored


def lr_by_parameter(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """Return the present learning rate of each parameter."""
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters()}


def load_lr(model: nn.Module, optimizer: Optimizer, rates: dict[str, float]) -> None:
    """Restore what `lr_by_parameter` returned, together with the optimizer state of the same moment."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = group["momentum_lr"] = rates[names[id(group["params"][0])]]


def make_ema(network: nn.Module, decay: float, steps: int = 0) -> AveragedModel:
    """Return an exponential moving average that begins with the present weights of `network`; buffers are copied.

    `steps` are those already averaged; with 0 the first update copies the weights.
    """
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ema.n_averaged.fill_(steps)
    return ema
