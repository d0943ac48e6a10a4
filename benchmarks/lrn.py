"""`python -m benchmarks.lrn`: this project's LRN against `torch.nn.LocalResponseNorm`, forward and backward."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.options import positive_int
from command_line import CommandParser
from training.cli import run_command
from training.models.lrn import LocalResponseNorm


def kinds(channels: int, device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what is compared; all compute the same function."""
    theirs = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    ours = LocalResponseNorm(channels, 1, alpha=1e-4).to(device)
    return {
        "nn.LocalResponseNorm": theirs,
        "nn.LocalResponseNorm, compiled": torch.compile(theirs),
        "this one": ours,
        "this one, compiled": torch.compile(ours),
    }


def seconds(norm: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> float:
    """Return the wall time of one forward and backward."""
    started = time.perf_counter()
    torch.autograd.grad(norm(x), x, gradient)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(arguments: Sequence[str]) -> None:
    """Print a table for both memory formats, the kinds taking turns."""
    parser = CommandParser(prog="python -m benchmarks.lrn", description=__doc__)
    parser.add_argument("--shape", type=positive_int, nargs=4, default=(128, 64, 32, 32), metavar=("N", "C", "H", "W"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=positive_int, default=7)
    options = parser.parse_args(arguments)
    dtype: torch.dtype = getattr(torch, options.dtype)
    print(f"{tuple(options.shape)} {dtype} on {options.device}, {torch.get_num_threads()} threads, n {options.rounds}")
    for name, memory_format in (("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last)):
        x, gradient = (
            (torch.randn(*options.shape, device=options.device) * scale).to(dtype, memory_format=memory_format)
            for scale in (30, 1)
        )
        x.requires_grad_()
        compared = kinds(options.shape[1], options.device)
        times: dict[str, list[float]] = {kind: [] for kind in compared}
        for turn in range(options.rounds + 1):
            for kind, norm in compared.items():
                taken = seconds(norm, x, gradient)
                if turn:  # the first one compiles and warms up
                    times[kind].append(taken * 1e3)
        for kind, values in times.items():
            median = statistics.median(values)
            print(f"| {name} | {kind} | {median:.3g} ms ({min(values):.3g}-{max(values):.3g}) |")


if __name__ == "__main__":
    sys.exit(run_command(main))
