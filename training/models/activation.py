"""The activations that can take the place of ReLU."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["relu", "tanh", "sigmoid", "softplus", "leaky", "prelu"]


def make_activation(name: Activation, channels: int) -> nn.Module:
    """Return the activation `name`; `leaky` has slope 0.1, `prelu` learns one slope for each of `channels`."""
    match name:
        case "relu":
            return nn.ReLU()
        case "tanh":
            return nn.Tanh()
        case "sigmoid":
            return nn.Sigmoid()
        case "softplus":
            return nn.Softplus()
        case "leaky":
            return nn.LeakyReLU(0.1)
        case "prelu":
            # One for each channel, so that it is split over devices along dimension 0 as all parameters are.
            return nn.PReLU(channels)
