"""`python -m benchmarks.resume --data SHARDS`: what it costs to take up an epoch in the middle, at ImageNet's size.

A data set of 1,281 tars is made of hard links to one of SHARDS, next to SHARDS. A new process for each measurement,
fresh and resumed in turn: from the making of the loader to its first batch, imports not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.options import positive_int
from command_line import CommandParser
from preprocess.manifest import Manifest, Split, read_manifest, write_manifest
from training.cli import run_command

SHARDS = 1281
BATCH_SIZE = 128
RESUMED = {"epoch": 3, "batch": 1000}
START = """
import json, sys, time
from pipeline.loader import make_loader
data, batch_size, place = json.loads(sys.argv[1])
started = time.perf_counter()
loader = make_loader(data, "train", batch_size)
if place:
    loader.load_state_dict({**loader.state_dict(), **place})
next(iter(loader))
print(time.perf_counter() - started)
"""


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = CommandParser(prog="python -m benchmarks.resume", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of shards; hard links are made next to it")
    parser.add_argument(
        "--rounds", type=positive_int, default=7, help="measurements of each kind, in turn (default: 7)"
    )
    options = parser.parse_args(arguments)
    manifest = read_manifest(options.data)
    with tempfile.TemporaryDirectory(dir=options.data.resolve().parent) as folder:
        large = link_shards(options.data, manifest, Path(folder))
        pairs = [(first_batch(large, {}), first_batch(large, RESUMED)) for _ in range(options.rounds)]
    report(pairs)


def link_shards(data: Path, manifest: Manifest, folder: Path, count: int = SHARDS) -> Path:
    """Fill `folder` with a data set whose train split is the first shard of `data`, `count` times; val stays."""
    first = manifest.split("train").shards[0]
    shards = tuple(
        replace(first, tar=f"train-{number:06d}.tar", index=f"train-{number:06d}.idx") for number in range(count)
    )
    for shard in shards:
        os.link(data / first.tar, folder / shard.tar)
        os.link(data / first.index, folder / shard.index)
    val = manifest.split("val")
    for name in (manifest.color_stats.mean_image, *(name for shard in val.shards for name in (shard.tar, shard.index))):
        os.link(data / name, folder / name)
    write_manifest(folder, replace(manifest, splits={"train": Split(count * first.samples, shards), "val": val}))
    return folder


def first_batch(data: Path, place: dict[str, int]) -> float:
    """Return the seconds that a new process needs for its first batch."""
    argument = json.dumps([str(data), BATCH_SIZE, place])
    done = subprocess.run([sys.executable, "-c", START, argument], capture_output=True, text=True, check=True)
    return float(done.stdout)


def report(pairs: list[tuple[float, float]]) -> None:
    """Print the seconds of both, and how much more a resumed one takes, round by round."""
    fresh, resumed = zip(*pairs, strict=True)
    more = [after - before for before, after in pairs]
    for name, measured in (("fresh", fresh), ("resumed", resumed), ("resumed - fresh", more)):
        spread = f"{min(measured):.2f} to {max(measured):.2f}"
        print(f"{statistics.median(measured):6.2f} s  {spread:15}  n={len(measured)}  {name}")


if __name__ == "__main__":
    sys.exit(run_command(main))
