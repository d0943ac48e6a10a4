"""A competent script of the usual kind, which `benchmarks.build_shards` compares with: images -> WebDataset shards.

It runs in an environment of its own, with plain Pillow and webdataset; nothing of Twotower is imported. Every worker
writes shards of its own, so no image passes between processes.
"""

import io
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import webdataset
from PIL import Image

SHORT_SIDE, QUALITY = 256, 95


def read_sample(path: Path, label: int) -> dict[str, object]:
    """Return a sample as webdataset's writers take it."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    ratio = SHORT_SIDE / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return {"__key__": path.stem, "jpg": buffer.getvalue(), "cls": label}


def write_shards(task: tuple[int, list[tuple[Path, int]], Path]) -> int:
    """Write the shards of one part of the images; return how many images became samples."""
    number, files, output = task
    with webdataset.ShardWriter(f"{output}/part-{number}-%06d.tar", maxcount=len(files), verbose=0) as writer:
        for path, label in files:
            writer.write(read_sample(path, label))
        return writer.total


def main(source: Path, output: Path, workers: int, shard_samples: int) -> None:
    """Write shards of all class folders in `source`; print samples, seconds and CPU seconds as JSON."""
    started = time.perf_counter()
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir())
    files = [(path, label) for label, folder in enumerate(classes) for path in sorted(folder.iterdir())]
    tasks = [
        (number, files[first : first + shard_samples], output)
        for number, first in enumerate(range(0, len(files), shard_samples))
    ]
    with multiprocessing.Pool(workers) as pool:
        samples = sum(pool.imap_unordered(write_shards, tasks))
        pool.close()
        pool.join()
    seconds = time.perf_counter() - started
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in usage)
    print(json.dumps({"samples": samples, "seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
