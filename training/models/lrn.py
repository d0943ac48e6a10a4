"""Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalResponseNorm(nn.Module):
    """x / (k + alpha * sum of x² over a window of `size` neighbouring channels)^0.75, within each tower.

    The window is clipped where a tower's channels end and never reaches into the other tower. `alpha` multiplies
    the plain sum, as in the paper's formula (`torch.nn.LocalResponseNorm` divides its alpha by the size).

    Shapes: N,C,H,W -> N,C,H,W of the same dtype; C must divide by `towers`.
    """

    band: Tensor

    def __init__(self, channels: int, towers: int, *, alpha: float, k: float = 2.0, size: int = 5) -> None:
        super().__init__()
        self.k = k
        self.towers = towers
        per_tower = channels // towers
        distance = torch.arange(per_tower)[:, None] - torch.arange(per_tower)[None, :]
        band = alpha * (distance.abs() <= size // 2).float()
        # Derived from the arguments alone: it is no part of a checkpoint.
        self.register_buffer("band", band.repeat(towers, 1)[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x: N,C,H,W."""
        # The window sum is a 1x1 convolution with a band matrix: one fast pass on any device, where a pooling
        # over the channel axis walks through memory with the longest stride there is.
        squares = F.conv2d(x * x, self.band.to(x.dtype), groups=self.towers)
        # d^-0.75 = d^-0.5 * (d^-0.5)^0.5: `pow` with a fraction costs several times as much.
        root = torch.rsqrt(squares + self.k)
        return x * (root * root.sqrt())
