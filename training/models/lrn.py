"""Response normalisation: across channels (Krizhevsky et al. 2012, section 3.3) and within a map (run 145)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LocalResponseNorm(nn.Module):
    """x / (k + alpha * sum of x² over a window of `size` neighbouring channels)^beta, within each tower.

    The window is clipped where a tower's channels end and never reaches into the other tower. `alpha` multiplies
    the plain sum, as in the paper's formula (`torch.nn.LocalResponseNorm` divides its alpha by the size).
    `size` is odd.

    Shapes: N,C,H,W -> N,C,H,W of the same dtype; C must divide by `towers`.
    """

    band: Tensor

    def __init__(
        self, channels: int, towers: int, *, alpha: float, k: float = 2.0, size: int = 5, beta: float = 0.75
    ) -> None:
        super().__init__()
        self.alpha, self.k, self.size, self.beta = alpha, k, size, beta
        self.towers = towers
        per_tower = channels // towers
        distance = torch.arange(per_tower)[:, None] - torch.arange(per_tower)[None, :]
        band = (distance.abs() <= size // 2).float()
        # It follows from the arguments, so it is not part of a checkpoint.
        blocks = torch.block_diag(*[band] * towers)
        self.register_buffer("band", blocks[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x: N,C,H,W."""
        normalised: Tensor = _Normalise.apply(x, self.band, (self.towers, self.size), self.alpha, self.k, self.beta)
        return normalised


class SpatialResponseNorm(nn.Module):
    """x / (1 + 4e-5 * sum of x² over a window of 5x5 pixels of the same map)^0.75; N,C,H,W -> N,C,H,W.

    Layer `cnorm2` of run 145, which the paper does not mention: scale 0.001 over 25 pixels. Outside the map is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x: N,C,H,W."""
        # The mean and not the sum (`divisor_override=1`), which the exporter to ONNX takes for the mean.
        squares = F.avg_pool2d(x * x, 5, stride=1, padding=2)
        root = torch.rsqrt(squares * 1e-3 + 1.0)
        return x * (root * root.sqrt())


class _Normalise(torch.autograd.Function):
    """The formula with a backward that keeps only x and the denominators and computes mostly in place.

    With d = k + alpha * S(x²), S the window's sum: y = x d^-beta, and since S is symmetric
    dx = g d^-beta - 2 alpha beta x S(g x d^-(beta + 1)).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, band: Tensor, window: tuple[int, int], alpha: float, k: float, beta: float
    ) -> Tensor:
        denominators = _window_sum(x * x, band, *window).mul_(alpha).add_(k)
        ctx.save_for_backward(x, denominators, band)
        ctx.window, ctx.alpha, ctx.beta = window, alpha, beta
        # A new tensor: compiled by torch 2.11, one that was changed in place has no gradient.
        return _inverse_power(denominators, beta) * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        x, denominators, band = ctx.saved_tensors
        direct = _inverse_power(denominators, ctx.beta).mul_(gradient)
        through_sums = _window_sum((direct * x).div_(denominators), band, *ctx.window).mul_(x)
        return direct.add_(through_sums, alpha=-2 * ctx.alpha * ctx.beta), None, None, None, None, None


def _window_sum(values: Tensor, band: Tensor, towers: int, size: int) -> Tensor:
    """Sum over a window of channels, each tower for itself: N,C,H,W -> N,C,H,W, a new tensor."""
    if values.is_cuda and values.dtype == torch.float32:
        return sum_of_views(values, towers, size)
    # A 1x1 convolution with a band matrix: one fast pass, where a pooling over the channel axis walks through memory
    # with the longest stride there is. On a GPU towers are blocks of the matrix and no groups, for which cuDNN would
    # first change the layout of everything in bfloat16.
    weights, groups = band, 1
    if not values.is_cuda:
        per_tower = len(band) // towers
        weights, groups = band[:per_tower, :per_tower].repeat(towers, 1, 1, 1), towers
    with torch.autocast(values.device.type, enabled=False):
        return F.conv2d(values, weights.to(values.dtype), groups=groups)


def sum_of_views(values: Tensor, towers: int, size: int) -> Tensor:
    """Return the same as a sum of shifted views, without cuDNN, which would round float32 to TF32.

    Nothing is changed in place: compiled by torch 2.11, additions to slices write outside of their memory on a GPU.
    """
    reach = size // 2
    sums = []
    for tower in values.chunk(towers, dim=1):
        padded = F.pad(tower, (0, 0, 0, 0, reach, reach))
        shifted = [padded[:, step : step + tower.shape[1]] for step in range(size)]
        sums.append(sum(shifted[1:], start=shifted[0]))
    return torch.cat(sums, dim=1)


def _inverse_power(base: Tensor, exponent: float) -> Tensor:
    """Return base^-exponent, a new tensor; only for use outside of autograd."""
    if exponent == 0.75:
        # d^-0.75 = d^-0.5 * (d^-0.5)^0.5: `pow` with a fraction costs several times as much.
        root = base.rsqrt()
        return root.sqrt().mul_(root)
    return base.pow(-exponent)
