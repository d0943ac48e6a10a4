"""The moving average of the weights, which is what a training with `optimizer.ema` validates and gives away."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_average(network: nn.Module, decay: float, steps: int = 0) -> AveragedModel:
    """Return an exponential moving average that begins with the present weights of `network`.

    Args:
        network: this device's part; its buffers are copied, not averaged.
        decay: what the average keeps of itself at each step, above 0 and below 1.
        steps: steps that are in it already; with 0 the first update copies the weights.
    """
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.n_averaged.fill_(steps)
    return average
