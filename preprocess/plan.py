"""The plan of a build: which image becomes which sample of which shard, made before anything is read or written.

It follows from the sources' names, the options and the seed alone. Two builds with the same plan over the same
files give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preprocess import sample
from preprocess.manifest import ClassEntry, InputError
from preprocess.shards import sample_keys, shard_stem
from preprocess.sources import SPLITS, Catalogue, RawImage, list_class_folders, printable, shuffle_key


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for; the command line's options, checked."""

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
    seed: int = 0
    """Decides the order of the samples, which images are kept for val, and the sample's drawings."""
    workers: int = 1
    """Processes; they change nothing but the time."""
    val_fraction: float | None = None
    """Part of each class to keep for val, 0 or more and below 1, where the input has no val split."""
    shard_samples: int = 1000
    """Images in a shard, at most."""
    apply_exif: bool = False
    """Turn images as their EXIF orientation says."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value out of range."""
        # 16 times 4000 is the longest side that a JPEG can have.
        for field, low, high in (("short_side", 1, 4000), ("quality", 1, 100)):
            value = getattr(self, field)
            if not low <= value <= high:
                raise InputError(f"{_flag(field)} is {value}; it must be between {low} and {high}")
        for field in ("workers", "shard_samples"):
            if getattr(self, field) < 1:
                raise InputError(f"{_flag(field)} is {getattr(self, field)}; it must be at least 1")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction is {self.val_fraction}; it must be at least 0 and below 1")
        if self.name is not None and not self.name.strip():
            raise InputError("--name is empty; leave it out for the input folder's")
        if self.input is None and self.val_fraction is not None:
            raise InputError("--val-fraction needs --input: the embedded sample has its own val split")

    @property
    def data_name(self) -> str:
        """Return the data set's name."""
        if self.name is not None:
            return printable(self.name)
        return sample.NAME if self.input is None else printable(self.input.resolve().name)


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One image on its way into a shard."""

    key: str
    label: int
    source: str


@dataclass(frozen=True)
class PlannedShard:
    """One shard before it is built: at most `shard_samples` images of one split, in their final order."""

    stem: str
    split: str
    samples: tuple[PlannedSample, ...]


@dataclass(frozen=True)
class Plan:
    """Everything about a build that is known beforehand."""

    options: BuildOptions
    catalogue: Catalogue
    shards: tuple[PlannedShard, ...]

    @property
    def class_entries(self) -> tuple[ClassEntry, ...]:
        """Return the classes as the manifest lists them."""
        names = [printable(name) for name in self.catalogue.classes]
        return tuple(ClassEntry(id=name, name=name) for name in names)


def make_plan(options: BuildOptions) -> Plan:
    """Look through the source, shuffle each split by the seed, cut it into shards of even size.

    Raises:
        InputError: as `list_class_folders` says, or the output lies in the input folder.
    """
    catalogue = _catalogue(options)
    sources = [image.source for image in catalogue.images]
    keys = dict(zip(sources, sample_keys(sources), strict=True))
    shards: list[PlannedShard] = []
    for split in SPLITS:
        images = sorted(catalogue.split(split), key=lambda image: shuffle_key("order", options.seed, image.source))
        for number, part in enumerate(_even_parts(images, options.shard_samples)):
            samples = tuple(PlannedSample(keys[image.source], image.label, image.source) for image in part)
            shards.append(PlannedShard(shard_stem(split, number), split, samples))
    return Plan(options, catalogue, tuple(shards))


def _even_parts(images: list[RawImage], largest: int) -> list[list[RawImage]]:
    """Divide into as few parts as hold at most `largest` each, whose sizes differ by one at most."""
    parts = -(-len(images) // largest)
    return [images[part * len(images) // parts : (part + 1) * len(images) // parts] for part in range(parts)]


def _catalogue(options: BuildOptions) -> Catalogue:
    if options.input is None:
        return Catalogue.of(sample.listing())
    if options.output.resolve().is_relative_to(options.input.resolve()):
        raise InputError(f"output {options.output} lies in the input folder {options.input}: choose another")
    return Catalogue.of(list_class_folders(options.input, options.val_fraction, options.seed))


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"
