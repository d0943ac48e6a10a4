"""`python -m benchmarks.loader --data SHARDS`: this loader, its peers and the floor, in one run.

All of them read the same images on the same cores, cut random crops of the same size and mirror half of them, in turn,
several times:

- this loader, lighting noise included;
- the same with `cache="host"`, filled before anything is measured;
- the bare DALI graph: DALI's own webdataset reader and random numbers, no lighting;
- torchvision's v2 transforms in a DataLoader, over the same images as files;
- the same transforms over webdataset in a DataLoader, over the same tars;
- only decoding, of files that are in memory: the floor.

Each has a process of its own: what one sets in DALI, torch or the allocator does not reach another. Its queues are
filled while nothing is measured, and the first batches of each turn are not counted.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from nvidia.dali import fn, pipeline_def
from nvidia.dali.types import DALIDataType, DALIImageType
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.fed_step import endless, filled
from benchmarks.options import positive_int
from command_line import CommandParser
from machine_limits import cpu_count
from pipeline.crops import default_crop
from pipeline.loader import make_loader
from pipeline.reading.dali_stream import to_torch
from pipeline.reading.samples import Samples
from preprocess.manifest import Manifest, read_manifest
from training.cli import run_command

THIS, BARE, FLOOR = "this loader", "bare DALI graph", "decoding only"
CACHED = "this loader, host cache"
FILES, WEBDATASET = "torchvision and DataLoader", "webdataset and DataLoader"
WARM_UP_BATCHES = 10
"""Not counted in each turn: more than any of the queues holds."""
PAUSE_S = 1.5
"""After each turn, until the queues of the one before are full and its threads at rest."""
BATCH_SIZE = 128
IN_MEMORY_BATCHES = 8
"""Batches that the floor decodes over and over."""

Batches = Iterator[Any]

_opened: Batches | None = None
"""The kind that this process measures."""


@dataclass(frozen=True)
class Setting:
    """The settings that all kinds have in common."""

    data: Path
    crop: int
    workers: int
    """Threads or processes."""
    files: Path
    """The train images as single files, in a folder for each class."""

    @property
    def manifest(self) -> Manifest:
        """Of the shards."""
        return read_manifest(self.data)

    @property
    def graph(self) -> dict[str, Any]:
        """The settings of a DALI graph."""
        return {"batch_size": BATCH_SIZE, "num_threads": self.workers, "device_id": None}

    @property
    def processes(self) -> dict[str, Any]:
        """The settings of a DataLoader."""
        return {"num_workers": self.workers, "persistent_workers": True}


def main(arguments: Sequence[str]) -> None:
    """Measure, print a table and the ratios."""
    parser = CommandParser(prog="python -m benchmarks.loader", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of shards; its train split is read")
    parser.add_argument(
        "--crop", type=positive_int, help="side of the crops in pixels (default: 7/8 of the short side)"
    )
    parser.add_argument("--rounds", type=positive_int, default=7, help="turns of each kind (default: 7)")
    parser.add_argument(
        "--batches", type=positive_int, default=40, help=f"of {BATCH_SIZE} images in each turn (default: 40)"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=cpu_count(),
        help="threads or processes (default: all CPUs)",
    )
    options = parser.parse_args(arguments)
    manifest = read_manifest(options.data)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Samples(options.data, manifest, "train"), len(manifest.classes), Path(folder))
        crop = options.crop or default_crop(manifest.short_side)
        rates = measure(Setting(options.data, crop, options.workers, Path(folder)), options.rounds, options.batches)
    report(rates)


def measure(setting: Setting, rounds: int, batches: int) -> dict[str, list[float]]:
    """Return images per second of each kind, `rounds` times, kinds in turn."""
    rates: dict[str, list[float]] = {name: [] for name in KINDS}
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        kinds = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in KINDS}
        for name, process in kinds.items():
            process.submit(open_kind, name, setting).result()  # not as its initializer, whose errors have no text here
            process.submit(turn, WARM_UP_BATCHES).result()
        for number in range(rounds):
            for name, process in kinds.items():
                rates[name].append(process.submit(turn, batches).result())
                time.sleep(PAUSE_S)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return rates


def open_kind(name: str, setting: Setting) -> None:
    """Open one kind in this process."""
    global _opened
    torch.set_num_threads(setting.workers)
    _opened = KINDS[name](setting)


def turn(batches: int) -> float:
    """Take batches of the kind that is open in this process; return images per second."""
    assert _opened is not None
    take(_opened, WARM_UP_BATCHES)
    started = time.perf_counter()
    take(_opened, batches)
    return batches * BATCH_SIZE / (time.perf_counter() - started)


def take(batches: Batches, count: int) -> None:
    """Take batches, and forget them."""
    for _ in itertools.islice(batches, count):
        pass


def write_files(samples: Samples, classes: int, folder: Path) -> None:
    """Write the stored JPEG files as ImageFolder reads them."""
    for label in range(classes):
        (folder / f"{label:05d}").mkdir()
    for index in range(len(samples)):
        example = samples.example(index)
        (folder / f"{example.label:05d}" / f"{index:08d}.jpg").write_bytes(example.jpeg)


def this_loader(setting: Setting) -> Batches:
    """Our loader, augmentation as in the paper."""
    return endless(make_loader(setting.data, "train", BATCH_SIZE, crop=setting.crop, num_threads=setting.workers))


def this_cache(setting: Setting) -> Batches:
    """The same with all its samples in its host cache."""
    shown: dict[str, Any] = {"crop": setting.crop, "num_threads": setting.workers}
    return endless(filled(make_loader(setting.data, "train", BATCH_SIZE, cache="host", **shown)))


def bare_dali(setting: Setting) -> Batches:
    """Return the batches of a bare DALI graph."""
    return runs(bare_graph(setting.data, setting.manifest, setting.crop, **setting.graph))


def floor(setting: Setting) -> Batches:
    """Decode, with DALI, a few batches of files that are in memory."""
    samples = Samples(setting.data, setting.manifest, "train")
    firsts = range(0, len(samples) - BATCH_SIZE, BATCH_SIZE)
    parts = [np.arange(first, first + BATCH_SIZE) for first in firsts[:IN_MEMORY_BATCHES]]
    memory = itertools.cycle([samples.read(part).jpegs for part in parts])
    return runs(floor_graph(lambda: next(memory), setting.crop, **setting.graph))


def torchvision_files(setting: Setting) -> Batches:
    """torchvision's transforms in torch's DataLoader."""
    dataset = ImageFolder(str(setting.files), torchvision_transform(setting.manifest, setting.crop))
    return endless(DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, **setting.processes))


def torchvision_webdataset(setting: Setting) -> Batches:
    """Return batches as webdataset makes them: shuffled tars, a shuffle buffer, batches made in the workers."""
    tars = [str(setting.data / shard.tar) for shard in setting.manifest.split("train").shards]
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("jpg", "cls")
        .map_tuple(torchvision_transform(setting.manifest, setting.crop), int)
        .batched(BATCH_SIZE, partial=False)
    )
    return endless(webdataset.WebLoader(dataset, batch_size=None, **setting.processes))


@pipeline_def
def bare_graph(data: Path, manifest: Manifest, crop: int) -> Any:
    """Return the graph that one writes with only DALI: its reader, a random crop while decoding, mirror and mean."""
    shards = manifest.split("train").shards
    jpegs, labels = fn.readers.webdataset(
        paths=[str(data / shard.tar) for shard in shards],
        index_paths=[str(data / shard.index) for shard in shards],
        ext=["jpg", "cls"],
        random_shuffle=True,
        initial_fill=4096,
    )  # type: ignore[misc]
    images = fn.decoders.image_crop(
        jpegs,
        crop=(crop, crop),
        crop_pos_x=fn.random.uniform(range=(0, 1)),
        crop_pos_y=fn.random.uniform(range=(0, 1)),
        output_type=DALIImageType.RGB,
    )
    return planes(images, fn.random.coin_flip(), manifest), labels


@pipeline_def
def floor_graph(source: Callable[[], Any], crop: int) -> Any:
    """Decode the centre, nothing else."""
    jpegs = fn.external_source(source, dtype=DALIDataType.UINT8, ndim=1, no_copy=True)
    return fn.decoders.image_crop(jpegs, crop=(crop, crop), output_type=DALIImageType.RGB)


def planes(images: Any, mirror: Any, manifest: Manifest) -> Any:
    """Mirror, subtract the mean, float32 3,H,W."""
    mean = list(manifest.color_stats.mean)
    return fn.crop_mirror_normalize(images, mirror=mirror, mean=mean, dtype=DALIDataType.FLOAT, output_layout="CHW")


def torchvision_transform(manifest: Manifest, crop: int) -> Callable[[Any], torch.Tensor]:
    """Return the transform of a Pillow image that one writes with only torchvision."""
    return v2.Compose(
        [
            v2.RandomCrop(crop),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Normalize(list(manifest.color_stats.mean), [1.0, 1.0, 1.0]),
        ]
    )


def runs(graph: Any) -> Batches:
    """Give the batches of a graph, images as torch takes them."""
    graph.build()
    while True:
        images, *rest = graph.run()
        yield (to_torch(images), *rest)


def report(rates: dict[str, list[float]]) -> None:
    """Print images per second, and how many times as fast this loader is, round by round."""
    for name, measured in rates.items():
        spread = f"{min(measured):.0f}-{max(measured):.0f}"
        print(f"{statistics.median(measured):7.0f} images/s  {spread:11}  n={len(measured)}  {name}")
    for name in (name for name in rates if name != THIS):
        ratios = [ours / other for ours, other in zip(rates[THIS], rates[name], strict=True)]
        print(f"{statistics.median(ratios):7.2f} ({min(ratios):.2f}-{max(ratios):.2f})  {THIS} / {name}")


KINDS: dict[str, Callable[[Setting], Batches]] = {
    THIS: this_loader,
    CACHED: this_cache,
    BARE: bare_dali,
    FILES: torchvision_files,
    WEBDATASET: torchvision_webdataset,
    FLOOR: floor,
}

if __name__ == "__main__":
    sys.exit(run_command(main))
