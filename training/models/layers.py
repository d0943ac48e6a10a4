"""Layers by name: activations, the two forms of dropout, and initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh", "sigmoid", "softplus", "leaky", "prelu"]
DropoutForm = Literal["inverted", "2012"]
Init = Literal["paper", "code-2012", "he", "he-zero", "truncated", "torch"]

_ONES = {"conv2", "conv4", "conv5", "fc6", "fc7"}
_WIDER = {"conv3", "conv4", "conv5"}
_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "leaky": lambda: nn.LeakyReLU(0.1),
}


def make_activation(name: Activation, channels: int) -> nn.Module:
    """Return the activation `name`; `leaky` has slope 0.1, `prelu` learns one slope for each of `channels`."""
    # Slopes by channel are split over devices along dimension 0, as all parameters are.
    return nn.PReLU(channels) if name == "prelu" else _ACTIVATIONS[name]()


class Dropout2012(nn.Module):
    """Units are zeroed in training and nothing is scaled; in evaluation all are multiplied by the part that is kept.

    Krizhevsky et al. 2012, section 4.2; released code, HiddenSexLayer. `nn.Dropout` scales in training instead.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.keep = 1 - probability

    def forward(self, x: Tensor) -> Tensor:
        """Mask or scale x, of any shape."""
        return x * torch.empty_like(x).bernoulli_(self.keep) if self.training else x * self.keep


def make_dropout(form: DropoutForm, probability: float) -> nn.Module:
    """Return the layer that zeroes units with this probability in training."""
    return Dropout2012(probability) if form == "2012" else nn.Dropout(probability)


def initialise(layer: nn.Conv2d | nn.Linear, name: str, scheme: Init, *, is_last: bool) -> None:
    """Draw the weights of the layer `name` (conv1 to fc8) from torch's global generator and set its biases.

    `paper`: N(0, 0.01), biases 1 in conv2, conv4, conv5, fc6, fc7 (section 5). `code-2012`: the same, but 0.03 in
    conv3 to conv5 (run 145). `he`: N(0, 2 / fan-in), biases 0. `he-zero`: the same, but 0 in the last layer, so that
    training starts from equal probabilities. `truncated`: N(0, 0.1) cut at two standard deviations as TensorFlow does,
    biases 0. `torch`: what torch gives the layer at construction.
    """
    assert layer.bias is not None
    match scheme:
        case "torch":
            return
        case "he-zero" if is_last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        case "he" | "he-zero":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        case "truncated":
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.zeros_(layer.bias)
        case "paper" | "code-2012":
            nn.init.normal_(layer.weight, std=0.03 if scheme == "code-2012" and name in _WIDER else 0.01)
            nn.init.constant_(layer.bias, float(name in _ONES))
