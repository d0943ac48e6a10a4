"""`python -m benchmarks.planning`: time and memory of planning ImageNet.

The list of images is generated, with the names, sizes and offsets that ILSVRC-2012 has in its official archives: as
many images of as many classes. What follows is what every build does before it writes. Reading the headers of the
archives comes on top; that is the disk's time.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.options import positive_int
from command_line import CommandParser
from preprocess.plan import divide
from preprocess.sources.catalogue import ArchiveRef, Catalogue, Found
from training.cli import run_command

CLASSES = 1000
TRAIN, VAL = 1_281_167, 50_000


def main(arguments: Sequence[str]) -> None:
    """Generate the list, plan it, print seconds and memory."""
    parser = CommandParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--shard-samples", type=positive_int, default=1000, help="images in a shard, at most")
    shard_samples = parser.parse_args(arguments).shard_samples
    print(f"before: {_peak_mib():.0f} MiB")
    start = time.monotonic()
    names = {wnid: f"class {wnid}" for wnid in _wnids()}
    catalogue = Catalogue.of(names, _found(list(names)))
    listed = time.monotonic()
    print(f"list of {len(catalogue.images):,} images: {listed - start:.1f} s, {_peak_mib():.0f} MiB at most")
    shards = divide(catalogue, 0, shard_samples)
    print(f"plan of {len(shards):,} shards: {time.monotonic() - listed:.1f} s, {_peak_mib():.0f} MiB at most")


def _wnids() -> list[str]:
    return [f"n{number:08d}" for number in random.Random(0).sample(range(1_440_764, 15_075_142), CLASSES)]


def _found(wnids: list[str]) -> Iterator[Found]:
    rng = random.Random(1)
    for split, total, archive in (("train", TRAIN, "ILSVRC2012_img_train.tar"), ("val", VAL, "ILSVRC2012_img_val.tar")):
        offset = 0
        for number in range(total):
            wnid = wnids[number % CLASSES]
            size = rng.randrange(5_000, 250_000)
            name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
            yield split, wnid, f"{split}/{wnid}/{name}.JPEG", ArchiveRef(archive, offset, size)
            offset += 512 + size


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(run_command(main))
