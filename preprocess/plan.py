"""The plan of a build: the sample and the shard of each image, made before anything is read or written.

It depends only on the images' names, the options and the seed. The same plan over the same files gives the same bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from errors import InputError, check_choice, check_count
from preprocess import sample
from preprocess.shards import sample_keys, shard_stem
from preprocess.sources.catalogue import SPLITS, Catalogue, RawImage, printable, shuffle_key
from preprocess.sources.layouts import LAYOUTS, open_source
from preprocess.sources.source import Source, SourceOptions


@dataclass(frozen=True, kw_only=True)
class BuildOptions(SourceOptions):
    """The options of a build, checked; `seed` also decides the order of the samples, and what the sample shows."""

    input: Path | None
    """Folder of raw images; None for the embedded sample."""
    output: Path
    """Folder to write; absent, empty, or left by an earlier build."""
    name: str | None = None
    """The data set's name; None for the input folder's, or `sample`."""
    short_side: int = 256
    """Pixels of every sample's short side, 1 to 4000."""
    quality: int = 95
    """JPEG quality, 1 to 100."""
    workers: int = 1
    """Number of processes; no influence on the bytes."""
    shard_samples: int = 1000
    """Maximum number of images in a shard."""
    ray: str | None = None
    """Address of a Ray cluster to build on, or `auto`; None for processes of this machine."""
    max_rejected: float = 0.01
    """Fraction of all images that may be rejected, 0 to 1; more is an error."""
    apply_exif: bool = False
    """Turn images as their EXIF orientation says."""
    value_range: tuple[float, float] | None = None
    """The values that become black and white in images of one channel of more than 8 bits."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value out of range."""
        # 16 times 4000 is the longest side that a JPEG can have.
        for option, value, low, high in (
            ("--short-side", self.short_side, 1, 4000),
            ("--quality", self.quality, 1, 100),
            ("--max-rejected", self.max_rejected, 0, 1),
        ):
            if not low <= value <= high:
                raise InputError(f"{option} is {value}: it is out of range; use {low} to {high}")
        check_count("--workers", self.workers, 1)
        check_count("--shard-samples", self.shard_samples, 1)
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction is {self.val_fraction}: it is out of range; use at least 0 and below 1")
        if self.value_range is not None:
            black, white = self.value_range
            if not (math.isfinite(black) and math.isfinite(white) and black < white):
                raise InputError(f"--value-range is {black:g} {white:g}; use two finite numbers, the smaller one first")
        if self.name is not None and not self.name.strip():
            raise InputError("--name is empty; leave it out for the input folder's")
        for option, given in (
            ("--val-fraction", self.val_fraction is not None),
            ("--test-as-val", self.test_as_val),
            ("--splits", self.splits is not None),
            ("--classes", self.classes is not None),
            ("--labels", self.labels is not None),
        ):
            if self.input is None and given:
                raise InputError(f"{option} needs --input: the embedded sample has its own splits; leave it out")
        check_choice("--layout", self.layout, LAYOUTS)
        if self.input is None and self.layout != "auto":
            raise InputError("--layout needs --input: the embedded sample is drawn; leave it out")

    @property
    def data_name(self) -> str:
        """Return the data set's name."""
        if self.name is not None:
            return printable(self.name)
        return sample.NAME if self.input is None else printable(Path(os.path.realpath(self.input)).name)


@dataclass(frozen=True)
class PlannedShard:
    """One shard before it is built: at most `shard_samples` images of one split, in their final order."""

    stem: str
    split: str
    images: tuple[RawImage, ...]
    keys: tuple[str, ...]
    in_statistics: bool
    """True if its images count in the colour statistics: those of train, or of the first split without train."""

    def samples(self) -> Iterator[tuple[str, RawImage]]:
        """Yield each image with its key; not stored as pairs, since a plan may hold a million."""
        return zip(self.keys, self.images, strict=True)


@dataclass(frozen=True)
class Plan:
    """The plan of a build."""

    options: BuildOptions
    source: Source | None
    """Content of the input folder; None for the embedded sample."""
    catalogue: Catalogue
    shards: tuple[PlannedShard, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the splits to build; val may be empty."""
        return ("train", "val") if self.source is None else self.source.splits

    @property
    def images(self) -> int:
        """Return the number of images in all splits."""
        return len(self.catalogue.images)


def make_plan(options: BuildOptions) -> Plan:
    """List the source, shuffle each split by the seed, and cut it into shards of even size.

    Raises:
        InputError: as `open_source`, or the output lies in the input folder.
    """
    if options.ray is not None:  # no node has our working directory
        source_path = options.input.absolute() if options.input is not None else None
        options = replace(options, input=source_path, output=options.output.absolute())
    if options.input is None:
        source, catalogue = None, sample.catalogue()
    else:
        if Path(os.path.realpath(options.output)).is_relative_to(os.path.realpath(options.input)):
            raise InputError(
                f"--output is {options.output}: it lies in the input folder {options.input}; use another folder"
            )
        source = open_source(options.input, options)
        catalogue = source.catalogue
    return Plan(options, source, catalogue, divide(catalogue, options.seed, options.shard_samples))


def divide(catalogue: Catalogue, seed: int, shard_samples: int) -> tuple[PlannedShard, ...]:
    """Shuffle each split by the seed, cut it into shards of even size and at most `shard_samples` images."""
    images = catalogue.images
    keys = sample_keys([image.canonical_name for image in images])
    shards = []
    there = {image.split for image in images}
    of_statistics = next((split for split in SPLITS if split in there), None)
    for split in SPLITS:
        order = [number for number, image in enumerate(images) if image.split == split]
        order.sort(key=lambda number: shuffle_key("order", seed, images[number].canonical_name))
        for number, part in enumerate(_even_parts(order, shard_samples)):
            chosen = tuple(images[index] for index in part), tuple(keys[index] for index in part)
            shards.append(PlannedShard(shard_stem(split, number), split, *chosen, split == of_statistics))
    return tuple(shards)


def _even_parts(order: Sequence[int], largest: int) -> Iterator[Sequence[int]]:
    """Yield as few parts as possible of at most `largest` images; their sizes differ by at most one."""
    parts = -(-len(order) // largest)
    for part in range(parts):
        yield order[part * len(order) // parts : (part + 1) * len(order) // parts]
