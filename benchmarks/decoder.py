"""`python -m benchmarks.decoder --data SHARDS`: how fast this machine's GPU decodes the files of a train split.

Bare DALI graphs over files that lie in memory: decode, random window, mirror, mean, float32 on the GPU. Each setting in
turn, several times, with the processor cores that it keeps busy and, where `pynvml` is installed, how busy it finds the
GPU's JPEG engines. What the loader's own settings are chosen from (`pipeline.graphs`).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.types import DALIDataType, DALIImageType

from benchmarks.options import positive_int
from command_line import CommandParser
from errors import InputError
from machine_limits import cpu_count
from pipeline.crops import default_crop
from pipeline.reading.samples import Samples
from preprocess.manifest import read_manifest
from training.cli import run_command

BATCHES_IN_MEMORY = 8
WARM_UP = 6
"""Batches: more than any of the queues holds."""


@dataclass(frozen=True)
class Setting:
    """The settings of a decoding graph."""

    threads: int
    device: Literal["mixed", "cpu"] = "mixed"
    """`cpu` decodes on the processor and copies what is decoded."""
    region: Literal["window", "image"] = "window"
    """Decoded region: only the window, or the entire image, from which the GPU then cuts it."""
    engine: float = 0.65
    """`hw_decoder_load`: part of a batch for the GPU's JPEG engines."""
    depth: int = 2
    """`prefetch_queue_depth`: batches in hand."""
    fancy: bool = False
    """`jpeg_fancy_upsampling`: chroma interpolated as libjpeg does, not repeated."""
    padded: bool = True
    """Buffers of DALI's default size from the start, or of none."""

    def decoder(self) -> dict[str, Any]:
        """Return the options of DALI's decoder."""
        options: dict[str, Any] = {"device": self.device, "output_type": DALIImageType.RGB}
        if self.device == "mixed":
            options |= {"hw_decoder_load": self.engine, "jpeg_fancy_upsampling": self.fancy}
            options |= {} if self.padded else {"device_memory_padding": 0, "host_memory_padding": 0}
        return options


def settings(threads: int) -> dict[str, Setting]:
    """Return what is compared, by name: one thing after another is varied."""
    base = Setting(threads)
    found = {"processor only": replace(base, device="cpu")}
    for region in ("window", "image"):
        for engine in (0.0, 0.35, 0.65, 0.8, 0.9, 1.0):
            found[f"{region}, engine {engine}"] = replace(base, region=region, engine=engine)
        found[f"{region}, engine 0.65, fancy"] = replace(base, region=region, fancy=True)
    for fewer in (threads // 2, threads // 4):
        found[f"image, engine 0.65, {fewer} threads"] = replace(base, region="image", threads=max(1, fewer))
        found[f"window, engine 0.65, {fewer} threads"] = replace(base, threads=max(1, fewer))
    for depth in (3, 4):
        found[f"image, engine 0.65, depth {depth}"] = replace(base, region="image", depth=depth)
    found["image, engine 0.65, no padding"] = replace(base, region="image", padded=False)
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure each setting --rounds times, in turn; print a table, write --output."""
    parser = CommandParser(prog="python -m benchmarks.decoder", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument(
        "--rounds", type=positive_int, default=3, metavar="N", help="turns of each setting (default: 3)"
    )
    parser.add_argument("--batches", type=positive_int, default=30, metavar="N", help="in each turn (default: 30)")
    parser.add_argument("--batch-size", type=positive_int, default=256, metavar="N", help="(default: 256)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results as JSON")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise InputError("torch finds no GPU; python -m benchmarks.loader measures decoding on the processor")
    graphs = {
        name: open_graph(setting, options.data, options.batch_size) for name, setting in settings(cpu_count()).items()
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in graphs}
    for _ in range(options.rounds):
        for name, graph in graphs.items():
            found[name].append(turn(graph, options.batches, options.batch_size))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def open_graph(setting: Setting, data: Path, batch_size: int) -> Any:
    """Return a built graph over the first batches of the train split."""
    manifest = read_manifest(data)
    samples = Samples(data, manifest, "train")
    parts = [np.arange(first, first + batch_size) % len(samples) for first in range(0, len(samples), batch_size)]
    files = itertools.cycle([samples.read(part).jpegs for part in parts[:BATCHES_IN_MEMORY]])
    graph = decoding_graph(
        lambda: next(files),
        setting,
        default_crop(manifest.short_side),
        list(manifest.color_stats.mean),
        batch_size=batch_size,
        num_threads=setting.threads,
        device_id=0,
        prefetch_queue_depth=setting.depth,
    )
    graph.build()
    return graph


@pipeline_def
def decoding_graph(source: Callable[[], Any], setting: Setting, crop: int, mean: list[float]) -> Any:
    """Decode, cut out a random window, mirror, subtract the mean: float32 3,crop,crop on the GPU."""
    jpegs = fn.external_source(source, dtype=DALIDataType.UINT8, ndim=1, no_copy=True)
    place = {name: fn.random.uniform(range=(0, 1)) for name in ("crop_pos_y", "crop_pos_x")}
    window: dict[str, Any] = {"crop": (crop, crop), **place}
    planes: dict[str, Any] = {
        "mirror": fn.random.coin_flip(),
        "mean": mean,
        "dtype": DALIDataType.FLOAT,
        "output_layout": "CHW",
    }
    if setting.region == "image":
        return fn.crop_mirror_normalize(fn.decoders.image(jpegs, **setting.decoder()).gpu(), **window, **planes)
    return fn.crop_mirror_normalize(fn.decoders.image_crop(jpegs, **window, **setting.decoder()).gpu(), **planes)


def turn(graph: Any, batches: int, batch_size: int) -> dict[str, float]:
    """Return images per second, cores busy, and the load of the JPEG engines in per cent."""
    for _ in range(WARM_UP):
        graph.run()
    torch.cuda.synchronize()
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(batches):
        graph.run()
    torch.cuda.synchronize()
    seconds, cores = time.perf_counter() - started, time.process_time() - worked
    return {"images_per_second": batches * batch_size / seconds, "cores": cores / seconds, "engines": engine_load()}


def engine_load() -> float:
    """Return how busy the first GPU's JPEG engines were of late, in per cent; NaN where nobody knows."""
    if importlib.util.find_spec("pynvml") is None:
        return float("nan")
    import pynvml

    try:
        pynvml.nvmlInit()
        return float(pynvml.nvmlDeviceGetJpgUtilization(pynvml.nvmlDeviceGetHandleByIndex(0))[0])
    except (pynvml.NVMLError, AttributeError):
        return float("nan")


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the medians of each setting, with the range of the images per second."""
    lines = ["| setting | images/s | cores busy | JPEG engines | n |", "|---" * 5 + "|"]
    for name, turns in found.items():
        rates = [one["images_per_second"] for one in turns]
        cores, engines = (statistics.median(one[key] for one in turns) for key in ("cores", "engines"))
        lines.append(
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f}) | {cores:.1f} "
            f"| {engines:.0f} % | {len(turns)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
