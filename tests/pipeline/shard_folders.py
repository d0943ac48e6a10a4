"""Small data sets of textured images for the loader's tests, written by the project's own shard writer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess.images.statistics import ColorSums
from preprocess.images.transform import encode_jpeg
from preprocess.manifest import ClassEntry, Manifest, Shard, Split, write_manifest
from preprocess.shards import ShardWriter, shard_stem

SHORT_SIDE = 32
CROP = 28


def textured(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Blobs of a few pixels in colours of their own: no two windows of it look alike."""
    coarse = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_shards(
    folder: Path,
    splits: dict[str, Sequence[Sequence[bytes]]],
    *,
    classes: int,
    short_side: int = SHORT_SIDE,
    label_of: Callable[[int], int] | None = None,
) -> Path:
    """Write each split as shards of JPEG files; sample i of a split has label i modulo `classes`, or `label_of(i)`."""
    label_of = label_of or (lambda index: index % classes)
    folder.mkdir(parents=True)
    sums = ColorSums(short_side)
    sums.add(textured(np.random.default_rng(0), short_side * 3, short_side * 2))
    written = {}
    for name, shards in splits.items():
        entries: list[Shard] = []
        for number, jpegs in enumerate(shards):
            first = sum(entry.samples for entry in entries)
            with ShardWriter(folder, shard_stem(name, number)) as writer:
                for index, jpeg in enumerate(jpegs, start=first):
                    writer.add(f"{name}/sample-{index}", jpeg, f"{label_of(index):03d}")
                entries.append(writer.commit())
        written[name] = Split(sum(entry.samples for entry in entries), tuple(entries))
    (folder / "mean.npy").write_bytes(sums.mean_image_file())
    write_manifest(
        folder,
        Manifest(
            schema=1,
            name="textures",
            short_side=short_side,
            jpeg_quality=95,
            chroma="4:2:0",
            resample="bicubic",
            seed=0,
            classes=tuple(ClassEntry(f"c{number:03d}", f"class {number}") for number in range(classes)),
            splits=written,
            color_stats=sums.finish("mean.npy"),
            rejected=(),
        ),
    )
    return folder


def cut(jpegs: Sequence[bytes], sizes: Sequence[int]) -> list[Sequence[bytes]]:
    """Divide files among shards of the sizes given, which add up to their number."""
    ends = np.cumsum(sizes).tolist()
    assert ends[-1] == len(jpegs)
    return [jpegs[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def texture_jpegs(seed: int, count: int, short_side: int = SHORT_SIDE) -> list[bytes]:
    """JPEG files of landscape, portrait and square images, with even and odd margins."""
    rng = np.random.default_rng(seed)
    files = []
    for number in range(count):
        sides = (short_side, short_side + number % 12)
        width, height = sides if number % 2 else sides[::-1]
        files.append(encode_jpeg(textured(rng, width, height), 95))
    return files
