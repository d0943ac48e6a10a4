"""Initial weights of a layer, by the name of the scheme."""

from __future__ import annotations

from typing import Literal

from torch import nn

Init = Literal["paper", "code-2012", "he", "truncated", "torch"]

_ONES = {"conv2", "conv4", "conv5", "fc6", "fc7"}
_WIDER = {"conv3", "conv4", "conv5"}


def initialise(layer: nn.Conv2d | nn.Linear, name: str, scheme: Init) -> None:
    """Draw the weights of the layer `name` (conv1 to fc8) from torch's global generator and set its biases.

    `paper`: N(0, 0.01), biases 1 in conv2, conv4, conv5, fc6, fc7 (section 5). `code-2012`: the same, but 0.03 in
    conv3 to conv5 (run 145). `he`: N(0, 2 / fan-in), biases 0. `truncated`: N(0, 0.1) cut at two standard deviations
    as TensorFlow does, biases 0. `torch`: what torch gives the layer at construction.
    """
    assert layer.bias is not None
    match scheme:
        case "torch":
            return
        case "he":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        case "truncated":
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.zeros_(layer.bias)
        case "paper" | "code-2012":
            nn.init.normal_(layer.weight, std=0.03 if scheme == "code-2012" and name in _WIDER else 0.01)
            nn.init.constant_(layer.bias, float(name in _ONES))
