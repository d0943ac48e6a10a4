"""Dropout in its two forms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

DropoutForm = Literal["inverted", "2012"]


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
