"""The forward pass and the loss as one function that torch compiles, its backward with it.

The optimiser's step stays outside: its fused form is one kernel already, and compiled it would be made anew for every
learning rate. Validation stays outside too: it is a hundredth of a training, and its last batch has a size of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from errors import InputError
from training.loop.step import mean_loss

Compile = Literal["off", "auto", "on", "graphs"]
MeanLoss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""As `training.loop.step.mean_loss`."""


def resolve_compile(compile: Compile, device: torch.device) -> Literal["off", "on", "graphs"]:
    """Return what `compile` means on `device`; `auto` is `on` on a GPU and `off` elsewhere.

    Raises:
        InputError: CUDA graphs are asked for where there are none.
    """
    if compile == "auto":
        return "on" if device.type == "cuda" else "off"
    if compile == "graphs" and device.type != "cuda":
        raise InputError("compile is 'graphs', which needs a GPU; valid on CPUs are off, auto and on")
    return compile


def check_compiler(compile: Compile, device: torch.device) -> None:
    """Compile a function of one line, if `compile` would compile on this CPU at all.

    A GPU is not tried: the process that asks may have none.

    Raises:
        InputError: `graphs` on a CPU, or no working compiler.
    """
    if resolve_compile(compile, device) == "off" or device.type == "cuda":
        return
    try:
        torch.compile(torch.sin, fullgraph=True)(torch.zeros(8))
    except RuntimeError as error:
        reason = str(error).split("\n\n")[0].rpartition("Error: ")[2].splitlines()[0]
        raise InputError(
            f"compile is {compile!r}, but torch cannot compile here ({reason}): install a C++ compiler "
            "(CXX names another than g++) and Python's headers, or set compile to off"
        ) from error


def make_mean_loss(compile: Compile, device: torch.device, *, whole: bool) -> MeanLoss:
    """Return `training.loop.step.mean_loss`, compiled if `compile` says so on `device`; the first call takes the time.

    It is compiled for the batch sizes and the trainable parameters that it meets, each in a version of its own. Masks
    of dropout are other ones than without, but the same again for the same seed.

    Args:
        compile: as the field of the configuration.
        device: where the batches are.
        whole: nothing in the network or around it may be left uncompiled; off where processes exchange something
            within it, which divides it into several compiled parts.
    """
    chosen = resolve_compile(compile, device)
    if chosen == "off":
        return mean_loss
    # Versions are counted over the whole process, and beyond some torch compiles no more: what was compiled before
    # (with other layers trainable, for another session) is given up.
    torch.compiler.reset()
    mode = "reduce-overhead" if chosen == "graphs" else "default"
    compiled: MeanLoss = torch.compile(mean_loss, fullgraph=whole, dynamic=False, mode=mode)
    return functools.partial(_next_graphs, compiled) if chosen == "graphs" else compiled


def _next_graphs(compiled: MeanLoss, *arguments: Any) -> Tensor:
    """Call `compiled` in the memory of the graphs of the step before, whose gradients are applied."""
    torch.compiler.cudagraph_mark_step_begin()
    return compiled(*arguments)
