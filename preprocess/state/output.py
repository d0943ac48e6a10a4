"""The output folder: its state before a build, and its lock during one.

A build marks the folder with a lock file before it writes anything else. A folder that has neither this mark, nor
`.unfinished`, nor a manifest belongs to somebody else and stays untouched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atomic_files import PARTIAL_PATTERN, flush, remove_partial_files
from errors import InputError
from preprocess.manifest import MANIFEST_NAME, MEAN_IMAGE_NAME, Manifest, Shard, parse_manifest, read_index
from preprocess.plan import BuildOptions, Plan
from preprocess.sources.catalogue import SPLITS, printable
from preprocess.verify import ShardCheck, check_mean_image, check_shards, shard_faults

LOCK_NAME = ".build.lock"
UNFINISHED_NAME = ".unfinished"
_FINAL = rf"({'|'.join(SPLITS)})-\d{{6,}}\.(tar|idx)|{re.escape(MEAN_IMAGE_NAME)}|{re.escape(MANIFEST_NAME)}"
_PARTIAL = rf"\.({_FINAL}){PARTIAL_PATTERN}"
_OURS = rf"{_FINAL}|{_PARTIAL}|{re.escape(LOCK_NAME)}|{re.escape(UNFINISHED_NAME)}"


@dataclass(frozen=True)
class OutputState:
    """The state of an output folder before a build; by default, not complete."""

    manifest: Manifest | None = None
    """Of a complete folder that is as planned."""
    shards: Mapping[str, Shard] = field(default_factory=dict)
    """The shards of this manifest, by stem."""
    broken: frozenset[str] = frozenset()
    """Stems of the shards whose files differ from the manifest."""
    has_statistics: bool = False
    """True if the mean image, and so all statistics, are there."""

    @property
    def final_manifest(self) -> Manifest | None:
        """Return the manifest if its statistics are there: then it stays as it is."""
        return self.manifest if self.has_statistics else None


def inspect_output(plan: Plan) -> OutputState:
    """Compare the output folder with the plan and, if it is complete, every file with its manifest.

    Names, numbers and options are compared with the plan, the pixels of the images are not.

    Raises:
        InputError: the folder is complete but not as planned, its manifest cannot be read, or it is not vacant.
    """
    options = plan.options
    if not os.path.isfile(options.output / MANIFEST_NAME):  # noqa: PTH113 - Path's raises where the system refuses access
        check_vacant(options.output)
        return OutputState()
    manifest = parse_manifest(options.output)
    difference = _difference(manifest, plan)
    if difference:
        raise InputError(
            f"--output is {options.output}: it is a complete data set with {difference}; "
            "use another folder, or remove it"
        )
    faults = check_shards(manifest, options.output, options)
    return OutputState(
        manifest,
        shards={Path(shard.tar).stem: shard for shard in manifest.shards()},
        broken=frozenset(Path(tar).stem for tar, found in faults.items() if found),
        has_statistics=not check_mean_image(manifest, options.output),
    )


def option_difference(manifest: Manifest, options: BuildOptions) -> str | None:
    """Describe the first option with which a data set was built that is not one of these; None if there is none."""
    pairs = (
        ("name", manifest.name, options.data_name),
        ("short side", manifest.short_side, options.short_side),
        ("quality", manifest.jpeg_quality, options.quality),
        ("seed", manifest.seed, options.seed),
        ("--apply-exif", manifest.apply_exif, options.apply_exif),
        ("--value-range", manifest.value_range, options.value_range),
    )
    for option, found, wanted in pairs:
        if found != wanted:
            return f"{option} {found}, not {wanted}"
    return None


def _difference(manifest: Manifest, plan: Plan) -> str | None:
    """Describe the first difference between a complete data set and the planned one; None if there is none."""
    options = plan.options
    if (difference := option_difference(manifest, options)) is not None:
        return difference
    if manifest.classes != plan.catalogue.classes:
        return f"{len(manifest.classes)} other classes"
    rejected = {(entry.split, entry.source) for entry in manifest.rejected}
    expected = {}
    for shard in plan.shards:
        keys = [key for key, image in shard.samples() if (shard.split, printable(image.canonical_name)) not in rejected]
        if keys:
            expected[f"{shard.stem}.tar"] = keys
    listed = {shard.tar: shard for shard in manifest.shards()}
    if {tar: len(keys) for tar, keys in expected.items()} != {tar: shard.samples for tar, shard in listed.items()}:
        return "another number of images or --shard-samples"
    for tar, keys in expected.items():
        if not _is_indexed(options.output / listed[tar].index, keys) and not shard_faults(
            ShardCheck(options.output, listed[tar], manifest.short_side, len(manifest.classes))
        ):
            return "other images or another --shard-samples"
    return None


def _is_indexed(index: Path, keys: list[str]) -> bool:
    try:
        return [entry.key for entry in read_index(index)] == keys
    except (OSError, InputError):
        return False  # damaged


def check_vacant(folder: Path) -> None:
    """Raise `InputError` unless `folder` is absent, empty, or left by an unfinished build."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        if isinstance(error, NotADirectoryError) and os.path.exists(folder):  # noqa: PTH110 - Path's may raise
            raise InputError(f"--output is {folder}: it is not a folder; use another") from None
        raise InputError(f"--output is {folder}: it cannot be used: {error.strerror}; use another folder") from error
    ours = not {LOCK_NAME, UNFINISHED_NAME, MANIFEST_NAME}.isdisjoint(names)
    foreign = [name for name in names if not (ours and re.fullmatch(_OURS, name))]
    if foreign:
        raise InputError(
            f"--output is {folder}: it holds {foreign[0]!r}, which is not from a build; use an empty or new folder"
        )


@contextlib.contextmanager
def claim_output(folder: Path, complete: bool) -> Iterator[None]:
    """Make `folder` and lock it for a build; at the end, remove half-written files, the lock, and an empty folder.

    Raises:
        InputError: it cannot be made, another build uses it, or one has just ended in it: whether it has a manifest is
            no longer as `complete` says.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output is {folder}: it cannot be made: {error.strerror}; use another folder") from error
    with _locked(folder):
        try:
            if (folder / MANIFEST_NAME).exists() != complete:
                raise InputError(f"--output is {folder}: another build has just ended in it; run the command again")
            if created:
                flush(folder.parent)
            yield
        finally:
            remove_partial_files(folder, _FINAL)
            (folder / LOCK_NAME).unlink(missing_ok=True)
            if created:
                with contextlib.suppress(OSError):  # not empty: keep it
                    folder.rmdir()


def remove_stray_files(folder: Path, keep: Collection[str]) -> None:
    """Remove the files of builds from a folder without a manifest, except those named in `keep`."""
    for entry in list(folder.iterdir()):
        if re.fullmatch(_FINAL, entry.name) and entry.name not in keep:
            entry.unlink()
    remove_partial_files(folder, _FINAL)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a build that was killed after it wrote the manifest.

    Raises:
        InputError: another build uses the folder.
    """
    names = {entry.name for entry in folder.iterdir()}
    if {LOCK_NAME, UNFINISHED_NAME} & names or any(re.fullmatch(_PARTIAL, name) for name in names):
        with claim_output(folder, complete=True):
            shutil.rmtree(folder / UNFINISHED_NAME, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The system releases the lock when the process ends, however it ends.
    try:
        lock = (folder / LOCK_NAME).open("ab")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InputError(f"--output is {folder}: it cannot be written: {error.strerror}; use another folder") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--output is {folder}: another build is writing into it; use another folder") from None
        if os.fstat(file.fileno()).st_nlink == 0:
            raise InputError(f"--output is {folder}: another build has just ended in it; run the command again")
        yield
