"""`python -m benchmarks.train_step`: what each switch of a training step is worth, on one batch that stays in place.

In one run, taking turns: a bare loop in eager float32 with contiguous tensors; the same with one switch at a time; this
project's step with all of them; and `torchvision.models.alexnet` in the bare loop. Also the matrix ceiling: one
large product in the same precision (float32 on a GPU: with TF32, as cuDNN's convolutions have it), at its best turn.
The operations of a step are three times those of the forward pass's convolutions and fully connected layers, less the
gradient of the images, which nobody takes; LRN, pooling and the optimizer are not counted.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.options import positive_int
from command_line import CommandParser
from errors import InputError
from training.cli import run_command
from training.config import Optimizer
from training.loop.compile import MeanLoss, check_compiler, make_mean_loss
from training.loop.precision import NumberFormat, autocast, choose_format
from training.loop.step import train_step
from training.models import NETWORKS, build
from training.optim.optimizer import make_optimizer

CLASSES = 1000
DEFAULT_NETWORKS = ("alexnet-owt", "alexnet")
BATCH_SIZE = {"cpu": 32, "cuda": 256}
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is the ceiling."""
WARM_UP = 3
"""Calls before the first turn: they compile, choose algorithms and record graphs."""
TURN_SECONDS = 0.5
"""A turn is as many calls as take this long, at least one."""

Batch = tuple[Tensor, Tensor]
RankPlan = Callable[[], object]
Findings = dict[str, dict[str, Any]]
"""By kind of step."""


@dataclass(frozen=True)
class Kind:
    """The settings of a training step."""

    precision: NumberFormat = "float32"
    channels_last: bool = False
    fused: bool = False
    compile: Literal["off", "on", "graphs"] = "off"
    own: bool = False
    """By `training.loop.step` with the optimizer of `training.optim.optimizer`, not in the bare loop."""
    torchvision: bool = False
    """With torchvision's network."""


PLAIN = "plain"
TORCHVISION = "torchvision"
KINDS = {
    PLAIN: Kind(),
    "channels-last": Kind(channels_last=True),
    "bfloat16": Kind(precision="bfloat16"),
    "fused": Kind(fused=True),
    "compiled": Kind(compile="on"),
    "all-eager": Kind(channels_last=True, fused=True, own=True),
    "all": Kind(channels_last=True, fused=True, compile="on", own=True),
    "all-graphs": Kind(channels_last=True, fused=True, compile="graphs", own=True),
    TORCHVISION: Kind(torchvision=True),
}
"""By the name of the switch; the three of `all` are in bfloat16 where the hardware multiplies it."""


def main(arguments: Sequence[str]) -> None:
    """Measure each network, print its table, write --output; exit 1 if a kind failed."""
    parser = CommandParser(prog="python -m benchmarks.train_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=DEFAULT_NETWORKS, metavar="NAME")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help=f"(default: {BATCH_SIZE})")
    parser.add_argument(
        "--image-size", type=positive_int, default=224, metavar="N", help="side in pixels (default: 224)"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="turns of each kind (default: 5)")
    parser.add_argument("--threads", type=positive_int, default=torch.get_num_threads(), metavar="N", help="of a CPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--switches",
        nargs="+",
        choices=[name for name in KINDS if name != PLAIN],
        metavar="NAME",
        help=f"of {', '.join(KINDS)} (default: all that the hardware has; {PLAIN} always is)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="results as JSON")
    options = parser.parse_args(arguments)
    device = _device(options.device)
    torch.set_num_threads(options.threads)
    results = measure_networks(
        device, options.network, options.batch_size, options.image_size, options.rounds, options.switches
    )
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if any_failed(results):
        sys.exit(1)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch finds no GPU; valid here are auto and cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def measure_networks(
    device: torch.device,
    networks: Sequence[str] = DEFAULT_NETWORKS,
    batch_size: int | None = None,
    image_size: int = 224,
    rounds: int = 5,
    switches: Sequence[str] | None = None,
) -> dict[str, Findings]:
    """Measure the kinds of step with each network, print a table of each, and return what was found.

    Of a kind that is `images_per_second`, turn by turn, `precision`, `operations` (of an image) and `share_of_ceiling`;
    of one that did not run, `error`.

    Args:
        device: a CPU or a GPU.
        networks: keys of `training.models.NETWORKS`.
        batch_size: images in the one batch; None: that of `BATCH_SIZE`.
        image_size: their side in pixels.
        rounds: turns of each kind.
        switches: keys of `KINDS`, in addition to the plain one; None: those that `device` and the environment have.

    Raises:
        InputError: CUDA graphs on a CPU, no compiler, no torchvision, or images too small for the network.
    """
    kinds = choose_kinds(device, switches)
    batch_size = batch_size or BATCH_SIZE[device.type]
    results = {}
    for network in networks:
        print(f"{network}, batches of {batch_size} images of {image_size} pixels, {device.type}")
        results[network] = measure_steps(network, kinds, device, batch_size, image_size, rounds)
        print(table(results[network]), flush=True)
    return results


def any_failed(results: dict[str, Findings]) -> bool:
    """Tell whether a kind of step did not run with one of the networks."""
    return any("error" in kind for found in results.values() for kind in found.values())


def measure_steps(
    network: str, kinds: dict[str, Kind], device: torch.device, batch_size: int, image_size: int, rounds: int
) -> Findings:
    """Measure the kinds of step with one network; see `measure_networks`."""
    batch = (
        torch.randn(batch_size, 3, image_size, image_size, device=device),
        torch.randint(0, CLASSES, (batch_size,), device=device),
    )
    work: dict[str, RankPlan] = {name: make_step(kind, network, batch) for name, kind in kinds.items()}
    for precision in {kind.precision for kind in kinds.values()}:
        work[f"ceiling {precision}"] = make_product(precision, device)
    rates, errors = take_turns(work, device, rounds)
    operations = {kind.torchvision: operations_of(kind, network, image_size) for kind in kinds.values()}
    found: Findings = {}
    for name, kind in kinds.items():
        if name in errors:
            found[name] = {"error": errors[name]}
            continue
        ceiling = 2 * PRODUCT_SIDE[device.type] ** 3 * max(rates[f"ceiling {kind.precision}"])
        measured = [batch_size * rate for rate in rates[name]]
        found[name] = {
            "images_per_second": measured,
            "precision": kind.precision,
            "operations": operations[kind.torchvision],
            "share_of_ceiling": operations[kind.torchvision] * statistics.median(measured) / ceiling,
        }
    return found


def choose_kinds(device: torch.device, switches: Sequence[str] | None) -> dict[str, Kind]:
    """Return the plain kind and those of `switches`, with the precision that they have on `device`."""
    best, _ = choose_format("auto", device)
    has_torchvision = importlib.util.find_spec("torchvision") is not None
    unavailable = {"bfloat16": best == "float32", "all-graphs": device.type == "cpu", TORCHVISION: not has_torchvision}
    if switches is None:
        switches = [name for name in KINDS if not unavailable.get(name)]
    if TORCHVISION in switches and not has_torchvision:
        raise InputError(f"--switches {TORCHVISION} needs torchvision, which is not installed")
    kinds = {name: KINDS[name] for name in dict.fromkeys([PLAIN, *switches])}
    for kind in kinds.values():
        check_compiler(kind.compile, device)
    return {name: replace(kind, precision=best) if kind.own else kind for name, kind in kinds.items()}


def make_step(kind: Kind, network: str, batch: Batch) -> RankPlan:
    """Return a training step of this kind on `batch`, with a network of its own."""
    images, labels = batch
    device = images.device
    torch.manual_seed(0)
    model = _network(kind, network, images.shape[-1], device)
    if kind.channels_last:
        model.to(memory_format=torch.channels_last)
    mean_loss = make_mean_loss(kind.compile, device, fullgraph=True)
    context = autocast(kind.precision, device)
    if kind.own:
        optimizer = make_optimizer(model, Optimizer(learning_rate=1e-3))
        return partial(train_step, model, optimizer, images, labels, context, loss_function=mean_loss)
    if kind.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    plain = SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=kind.fused or None)
    return partial(bare_step, model, plain, images, labels, context, mean_loss)


def bare_step(
    model: nn.Module, optimizer: SGD, images: Tensor, labels: Tensor, context: torch.autocast, mean_loss: MeanLoss
) -> None:
    """Take a step as every tutorial does."""
    optimizer.zero_grad()
    with context:
        loss = mean_loss(model, images, labels, 0.0, None)
    loss.backward()
    optimizer.step()


def _network(kind: Kind, name: str, image_size: int, device: torch.device) -> nn.Module:
    with device:
        if not kind.torchvision:
            return build(name, CLASSES, image_size=image_size)
        import torchvision  # a GPU machine may have none

        network: nn.Module = torchvision.models.alexnet(num_classes=CLASSES)
        return network


def make_product(precision: str, device: torch.device) -> RankPlan:
    """Return the product of two large matrices of normal numbers."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    one, other = (torch.randn(2 * (PRODUCT_SIDE[device.type],), device=device, dtype=dtype) for _ in range(2))

    def product() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
        try:
            return one @ other
        finally:
            torch.set_float32_matmul_precision(before)

    return product


def operations_of(kind: Kind, name: str, image_size: int) -> int:
    """Return the multiplications and additions of a training step on one image."""
    network = _network(kind, name, image_size, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, image_size, image_size))
    # Of the backward pass torch would count the weights of a grouped convolution as if it had one group.
    counts = counter.get_flop_counts()
    layers = [
        sum(counts[f"{type(network).__name__}.{name}"].values())
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    return 3 * sum(layers) - layers[0]


def take_turns(
    work: dict[str, RankPlan], device: torch.device, rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return calls per second of each kind of work, turn by turn, and what was wrong with those that do not run."""
    calls, errors = {}, {}
    for name, call in work.items():
        print(f"warming up: {name}", file=sys.stderr)
        try:
            rate(call, device, WARM_UP)
            calls[name] = max(1, math.ceil(TURN_SECONDS * rate(call, device, 1)))
        except RuntimeError as error:  # of torch, from its compiler to its kernels: the others are still of use
            errors[name] = str(error).splitlines()[0]
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, count in calls.items():
            rates[name].append(rate(work[name], device, count))
    return rates, errors


def rate(call: RankPlan, device: torch.device, calls: int) -> float:
    """Return calls per second, until the device is done."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return calls / (time.perf_counter() - started)


def table(found: Findings) -> str:
    """Return the median of each kind with its range, how many times as fast as the plain one and torchvision's it is
    (round by round), and its share of the ceiling.
    """
    lines = ["| kind | images/s | times plain | times torchvision | of the matrix ceiling | n |", "|---" * 6 + "|"]
    for name, kind in found.items():
        if "error" in kind:
            lines.append(f"| {name} | failed: {kind['error']} | | | | 0 |")
            continue
        measured = kind["images_per_second"]
        times = [
            statistics.median(one / other for one, other in zip(measured, base, strict=True)) if base else math.nan
            for base in (found.get(other, {}).get("images_per_second") for other in (PLAIN, TORCHVISION))
        ]
        lines.append(
            f"| {name}, {kind['precision']} | {statistics.median(measured):.1f} "
            f"({min(measured):.1f}-{max(measured):.1f}) | {times[0]:.2f} | {times[1]:.2f} "
            f"| {kind['share_of_ceiling']:.1%} | {len(measured)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
