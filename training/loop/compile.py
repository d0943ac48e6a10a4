"""Forward pass and loss as one function for `torch.compile`, including its backward.

The optimizer step stays outside: its fused form is one kernel already, and a compiled one would be compiled again for
every learning rate. Validation stays outside too: it takes a hundredth of the time, and its last batch is smaller.
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
MeanLoss = Callable[[nn.Module, Tensor, Tensor, float, Tensor | None], Tensor]
"""The signature of `training.loop.step.mean_loss`."""


def resolve_compile(compile: Compile, device: torch.device) -> Literal["off", "on", "graphs"]:
    """Resolve `auto`: `on` on a GPU and `off` elsewhere; raise `InputError` for `graphs` on a CPU."""
    if compile == "auto":
        return "on" if device.type == "cuda" else "off"
    if compile == "graphs" and device.type != "cuda":
        raise InputError("compile is 'graphs': it needs a GPU; use off, auto or on")
    return compile


def check_compiler(compile: Compile, device: torch.device) -> None:
    """Raise `InputError` for `graphs` on a CPU, or if `compile` needs a compiler on this CPU and none works.

    GPUs are not tried: the calling process may have none.
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


def make_mean_loss(compile: Compile, device: torch.device, *, fullgraph: bool) -> MeanLoss:
    """Return `training.loop.step.mean_loss`, compiled if `compile` says so on `device`; the first call takes the time.

    Each batch size and each set of trainable parameters is compiled separately. Dropout masks differ from those of the
    uncompiled function, and are the same for the same seed. `fullgraph` compiles everything into one graph; it is off
    where processes communicate within the network.
    """
    chosen = resolve_compile(compile, device)
    if chosen == "off":
        return mean_loss
    # torch limits the compiled versions per process: give up those of earlier calls.
    torch.compiler.reset()
    mode = "reduce-overhead" if chosen == "graphs" else "default"
    compiled: MeanLoss = torch.compile(mean_loss, fullgraph=fullgraph, dynamic=False, mode=mode)
    return functools.partial(_next_graphs, compiled) if chosen == "graphs" else compiled


def _next_graphs(compiled: MeanLoss, *arguments: Any) -> Tensor:
    """Call `compiled` in the memory of the previous step's graphs, whose gradients are applied."""
    torch.compiler.cudagraph_mark_step_begin()
    return compiled(*arguments)
