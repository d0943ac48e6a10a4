"""`python -m cluster.plan --gpus 8 --gpu h100 --network alexnet --batch 1024`: estimates time, memory and cost.

For ImageNet, in data, model and hybrid parallelism: step, decoding, storage, exchange, memory, hours and price.
`--check` prints measured steps against their estimates. `cluster/sizing/constants.json` has all figures and sources.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import get_args

from cluster.sizing.check import compare, format_comparisons
from cluster.sizing.constants import Constants, Device, LayoutName, Precision, load_constants
from cluster.sizing.estimate import Estimate, Job, choose_layout, estimate
from cluster.sizing.networks import NETWORKS
from command_line import CommandParser
from errors import InputError

IMAGENET_NETWORKS = [name for name, network in NETWORKS.items() if network.image_size == 224]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the estimate or the check; return 0, or 2 for bad input."""
    constants = load_constants()
    try:
        options = _parse(arguments, constants)
        if options.check:
            print(format_comparisons(compare(constants)))
            return 0
        job = _make_job(options, constants.devices[options.gpu])
        found, missing = _estimate_layouts(job, constants)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        images = constants.train_images.value
        layouts = [{**asdict(one), "hours": one.hours(images, options.epochs)} for one in found]
        print(json.dumps({"layouts": layouts, "not_possible": missing}, indent=1))
    else:
        print(_title(options, job))
        print(_table(found, job, constants, options.epochs))
        print("\n".join([*missing.values(), *_sources(job.device)]))
    return 0


def _parse(arguments: Sequence[str] | None, constants: Constants) -> argparse.Namespace:
    parser = CommandParser(prog="python -m cluster.plan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--gpus", type=_count, default=8, metavar="N", help="GPUs of all nodes (default: 8)")
    parser.add_argument(
        "--gpu",
        type=_choice(constants.devices),
        default="h100",
        metavar="NAME",
        help=f"{', '.join(constants.devices)}; epyc is a CPU (default: h100)",
    )
    parser.add_argument(
        "--network",
        type=_choice(IMAGENET_NETWORKS),
        default="alexnet",
        metavar="NAME",
        help=f"{', '.join(IMAGENET_NETWORKS)} (default: alexnet)",
    )
    parser.add_argument(
        "--batch", type=_count, default=1024, metavar="N", help="images in a step, all GPUs together (default: 1024)"
    )
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="machines, alike (default: 1)")
    parser.add_argument(
        "--network-gbps", type=_rate, metavar="G", help="network of a node in Gbit/s (default: the instance's)"
    )
    parser.add_argument("--cores", type=_count, metavar="N", help="CPU cores of a node (default: the instance's)")
    parser.add_argument("--epochs", type=_count, default=90, metavar="N", help="(default: 90)")
    parser.add_argument(
        "--precision",
        type=_choice(get_args(Precision)),
        metavar="NAME",
        help=f"{', '.join(get_args(Precision))} (default: bfloat16 where the hardware has it)",
    )
    parser.add_argument("--eager", action="store_true", help="not compiled, optimizer not fused")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--check", action="store_true", help="print measured steps against their estimates")
    output.add_argument("--json", action="store_true", help="print bytes, seconds and rates as JSON")
    return parser.parse_args(arguments)


def _choice(valid: Iterable[str]) -> Callable[[str], str]:
    """Return an argument type that takes only the `valid` names."""

    def check(text: str) -> str:
        if text not in valid:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown; use {', '.join(valid)}")
        return text

    return check


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return rate


def _make_job(options: argparse.Namespace, device: Device) -> Job:
    cores = device.cores
    if cores is not None and device.kind == "gpu":
        # A part of the usual machine has its part of the cores.
        cores = max(1, cores * min(options.gpus // options.nodes, device.gpus_per_node) // device.gpus_per_node)
    return Job(
        network=NETWORKS[options.network],
        device=device,
        gpus=options.gpus,
        batch=options.batch,
        precision=options.precision or ("bfloat16" if device.bfloat16_tflops else "float32"),
        compiled=not options.eager,
        nodes=options.nodes,
        network_gbps=options.network_gbps or device.network_gbps,
        cores=options.cores or cores,
    )


def _estimate_layouts(job: Job, constants: Constants) -> tuple[list[Estimate], dict[str, str]]:
    """Return the estimates of all layouts that the job can have, and by name why it cannot have the others."""
    found, missing = [], {}
    for name in get_args(LayoutName):
        try:
            layout = choose_layout(job, name)
        except InputError as error:
            missing[name] = str(error)
            continue
        found.append(estimate(job, layout, constants))
    return found, missing


def _title(options: argparse.Namespace, job: Job) -> str:
    machine = f"{job.cores} cores of an" if job.device.kind == "cpu" else f"{job.gpus} x"
    nodes = "" if job.nodes == 1 else f" on {job.nodes} nodes with {job.network_gbps:g} Gbit/s each"
    return (
        f"{options.network} on {machine} {job.device.name}{nodes}, batches of {job.batch}, {job.precision}, "
        f"{'compiled' if job.compiled else 'eager'}\n"
    )


def _table(found: list[Estimate], job: Job, constants: Constants, epochs: int) -> str:
    """Return one column for each layout."""
    rows = [_cells(one, job, constants, epochs) for one in found]
    titles = [one.layout.name + (f", width {one.layout.width}" if one.layout.width > 1 else "") for one in found]
    width = max(map(len, rows[0]))
    lines = [" " * width + "".join(f"  {title:>24}" for title in titles)]
    lines += [f"{name:{width}}" + "".join(f"  {cells[name]:>24}" for cells in rows) for name in rows[0]]
    return "\n".join(lines)


def _cells(one: Estimate, job: Job, constants: Constants, epochs: int) -> dict[str, str]:
    hours = one.hours(constants.train_images.value, epochs)
    cores = "" if job.cores is None else f" of {job.cores * job.nodes}"
    memory = f"{one.memory_bytes / 1e9:.1f} GB"
    if job.device.memory_gb is not None:
        memory += f" of {job.device.memory_gb:g}"
        memory += "" if one.memory_bytes <= job.device.memory_gb * 1e9 else ": too much"
    price = job.device.price
    return {
        "step": f"{one.step_seconds * 1e3:.2f} ms",
        "  convolutions": f"{one.step.convolutions * 1e3:.2f} ms",
        "  fully connected layers": f"{one.step.fully_connected * 1e3:.2f} ms",
        "  activations, pooling, LRN": f"{one.step.elementwise * 1e3:.2f} ms",
        "  optimizer": f"{one.step.update * 1e3:.2f} ms",
        "  exchange of activations": f"{one.activations_seconds * 1e3:.2f} ms",
        "  exchange of gradients": f"{one.gradients_exposed * 1e3:.2f} of {one.gradients_seconds * 1e3:.2f} ms exposed",
        "sent by each device in a step": f"{one.exchanged_bytes / 1e6:.1f} MB",
        "images/s": f"{one.images_per_second:,.0f}, by the {one.limit}",
        "cores that decode": f"{one.decode_cores:.1f}{cores}",
        "read from storage": f"{one.storage_bytes_per_second / 1e6:,.1f} MB/s",
        "memory of each device": memory,
        f"{epochs} epochs of ImageNet": _duration(hours),
        "cost": "no list price" if price is None else f"{hours * job.gpus * price.value:,.0f} USD",
    }


def _sources(device: Device) -> list[str]:
    """Return where the figures come from, a line each."""
    lines = [f"figures of the device: {device.origin}; {device.source}; {device.date}"]
    if device.price is not None:
        lines.append(f"price: {device.price.origin}, pro rata; {device.price.source}; {device.price.date}")
    return [*lines, "attained part of the peak, LRN on CPUs, decoding, size of images: measured here, see --check"]


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{int(hours)} h {int(hours * 60) % 60:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


if __name__ == "__main__":
    sys.exit(main())
