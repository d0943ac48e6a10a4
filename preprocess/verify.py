"""Comparison of a complete folder with its manifest: each different file is named with its fault."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from object_store import MissingFileError, StoreError, StoreFolder, is_uri, join, read_file
from preprocess.manifest import MANIFEST_NAME, Manifest, Shard, parse_manifest
from preprocess.plan import BuildOptions
from preprocess.run.pool import Tally
from preprocess.run.progress import BuildProgress, run_with_progress
from preprocess.shards import index_of, label_width


@dataclass(frozen=True)
class Fault:
    """A file of a data set that differs from the manifest."""

    file: str
    problem: str
    in_manifest: bool = False
    """The manifest itself is wrong or contradicts itself: building again repairs neither."""


@dataclass(frozen=True)
class ShardCheck:
    """One shard to check; `deep` includes its images and labels."""

    folder: Path | str
    """Path, or URI in an object store."""
    shard: Shard
    short_side: int
    classes: int
    deep: bool = False


def verify(place: Path | str, options: BuildOptions, deep: bool) -> tuple[Manifest, list[Fault]]:
    """Compare the data set at a path or URI with its manifest.

    Args:
        place: of the data set.
        options: with the pool to use.
        deep: also decode every image and read every label.

    Raises:
        InputError: there is no data set.
    """
    manifest = parse_manifest(place)
    faults = [
        Fault(MANIFEST_NAME, f"says {split.samples} samples for {name}, its shards have {held}", in_manifest=True)
        for name, split in manifest.splits.items()
        if (held := sum(shard.samples for shard in split.shards)) != split.samples
    ]
    shards = check_shards(manifest, place, options, "verifying", deep)
    faults += [fault for found in shards.values() for fault in found]
    return manifest, faults + check_mean_image(manifest, place)


def check_shards(
    manifest: Manifest, place: Path | str, options: BuildOptions, what: str = "checking", deep: bool = False
) -> dict[str, list[Fault]]:
    """Check all shards in parallel; return the faults of each by the tar's name."""
    shards = list(manifest.shards())
    side, classes = manifest.short_side, len(manifest.classes)
    tasks = [ShardCheck(place, shard, side, classes, deep) for shard in shards]
    progress = BuildProgress(what, sum(shard.samples for shard in shards), bad="broken")
    found = run_with_progress(check_shard, tasks, options, progress)
    return {shard.tar: faults for shard, faults in zip(shards, found, strict=True)}


def check_shard(task: ShardCheck, tally: Tally) -> list[Fault]:
    """Return the faults of one shard, and count it."""
    with _local_copy(task) as local:
        faults = shard_faults(local)
    broken = f"{faults[0].file} {faults[0].problem}" if faults else ""
    tally.count(images=task.shard.samples, size=task.shard.bytes, rejected=broken)
    return faults


@contextlib.contextmanager
def _local_copy(task: ShardCheck) -> Iterator[ShardCheck]:
    """Lend the same task for a folder on disk; tar and index of an object store are copied for it."""
    if not is_uri(task.folder):
        yield task
        return
    store = StoreFolder(str(task.folder))
    with tempfile.TemporaryDirectory() as folder:
        for name in (task.shard.tar, task.shard.index):
            with contextlib.suppress(MissingFileError), Path(folder, name).open("wb") as file:
                try:
                    file.writelines(store.parts(name))
                except MissingFileError:
                    Path(folder, name).unlink()
                    raise
        yield replace(task, folder=folder)


def shard_faults(task: ShardCheck) -> list[Fault]:
    """Return the faults of one shard in a folder: at most one each for tar and index."""
    shard, folder = task.shard, Path(task.folder)
    index = None
    tar = Fault(shard.tar, _check_file(folder / shard.tar, shard))
    if not tar.problem:
        problem, index = _check_content(task)
        tar = Fault(shard.tar, problem, in_manifest=True)
    faults = (tar, Fault(shard.index, _check_index(folder / shard.index, shard, index)))
    return [fault for fault in faults if fault.problem]


def check_mean_image(manifest: Manifest, folder: Path | str) -> list[Fault]:
    """Return the faults of the mean image: at most one."""
    name, digest = manifest.color_stats.mean_image, manifest.color_stats.mean_image_sha256
    shape = (manifest.short_side, manifest.short_side, 3)
    try:
        content = read_file(join(str(folder), name))
        if digest is not None and hashlib.sha256(content).hexdigest() != digest:
            return [Fault(name, "has another SHA-256 than the manifest says")]
        mean = np.load(io.BytesIO(content), allow_pickle=False)
    except FileNotFoundError:
        return [Fault(name, "is missing")]
    except StoreError:
        raise
    except Exception as error:  # a broken header raises nearly anything in NumPy's parser
        return [Fault(name, f"cannot be read: {_text(error)}")]
    if not isinstance(mean, np.ndarray):
        return [Fault(name, "is an archive of arrays, not one")]
    if (mean.shape, mean.dtype) != (shape, np.float32):
        return [Fault(name, f"is {mean.dtype} of shape {mean.shape}, not float32 of {shape}")]
    if not (mean.min() >= 0 and mean.max() <= 255):  # NaN is neither
        return [Fault(name, "holds values that are no grey levels")]
    return []


def _check_file(path: Path, shard: Shard) -> str:
    """Return the difference between a tar, as a file, and the manifest, or an empty string."""
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"has {size} bytes, not {shard.bytes}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                return "has another SHA-256 than the manifest says"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {_text(error)}"
    return ""


def _check_content(task: ShardCheck) -> tuple[str, str | None]:
    """Return the fault inside a tar, or an empty string, and the index that belongs to it, if readable."""
    shard, path = task.shard, Path(task.folder, task.shard.tar)
    try:
        index = index_of(path)
        samples = index.count("\n") - 1
        if samples != shard.samples:
            return f"holds {samples} samples, not {shard.samples}", index
        return (_check_samples(task, path) if task.deep else ""), index
    except (OSError, tarfile.TarError, ValueError) as error:
        return f"cannot be read: {_text(error)}", None


def _check_index(path: Path, shard: Shard, expected: str | None) -> str:
    """Return the fault of an index, or an empty string; `expected` is None where the tar is broken."""
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {_text(error)}"
    if expected is None:
        lines = len(text.splitlines()) - 1
        return "" if lines == shard.samples else f"lists {lines} samples, not {shard.samples}"
    if text == expected:
        return ""
    found, right = text.splitlines(), expected.splitlines()
    line = next((at for at, pair in enumerate(zip(found, right, strict=False)) if pair[0] != pair[1]), None)
    if line is None:
        return f"has {len(found)} lines, not {len(right)}"
    return f"line {line + 1} is not what the tar holds: {found[line][:80]!r}"


def _check_samples(task: ShardCheck, path: Path) -> str:
    """Return the fault of the first broken sample of a tar, and the number of others."""
    broken = []
    with tarfile.open(path, "r:") as tar:
        files = iter(tar)
        for image, label in zip(files, files, strict=True):
            pixels, number = (tar.extractfile(file) for file in (image, label))
            assert pixels is not None
            assert number is not None
            problem = _check_image(pixels.read(), task.short_side) or _check_label(number.read(), task.classes)
            if problem:
                broken.append(f"sample {image.name.removesuffix('.jpg')}: {problem}")
    others = f" (and {len(broken) - 1} more samples)" if len(broken) > 1 else ""
    return f"{broken[0]}{others}" if broken else ""


def _check_image(data: bytes, short_side: int) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            image.load()
            if (image.mode, min(image.size)) != ("RGB", short_side):
                size = "x".join(map(str, image.size))
                return f"is {image.mode} of {size} pixels, not RGB with a short side of {short_side}"
    except Exception as error:  # a broken file raises nearly anything in Pillow's parsers
        return f"does not decode: {_text(error)}"
    return ""


def _check_label(data: bytes, classes: int) -> str:
    text = data.decode("ascii", "replace")
    if len(text) != label_width(classes) or not text.isdecimal() or int(text) >= classes:
        return f"label {text!r} is not one of {classes} classes in {label_width(classes)} digits"
    return ""


def _text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
