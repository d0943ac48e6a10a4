"""`.unfinished`, the state that a build keeps in its output folder until the manifest is written.

plan.json     fingerprint of the build, written first
<stem>.npz    exact sums over the pixels of a shard that counts in the statistics
<stem>.json   record of a finished shard, written last: tar, index and sums are then complete and on disk
drawn/        raw images of the embedded sample, drawn again by each run
scratch/      unpacked containers of the input
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atomic_files import atomic_write, flush, remove_partial_files
from errors import InputError
from preprocess.images.statistics import ColorSums
from preprocess.images.value_range import FEW_LEVELS, RangeUse
from preprocess.manifest import MANIFEST_NAME, Rejection, Shard
from preprocess.plan import PlannedShard
from preprocess.sources.catalogue import SPLITS, printable
from preprocess.sources.raw_files import RawFiles
from preprocess.state.fingerprint import FileFingerprint, difference
from preprocess.state.output import UNFINISHED_NAME, remove_stray_files
from typed_json import parse_json

_PLAN_NAME = "plan.json"
_DRAWN_NAME = "drawn"
_SCRATCH_NAME = "scratch"
_CHANGED_FILES = 1 / 8  # of all files: a source may be repaired, but with more changes it is another source


@dataclass(frozen=True)
class RangeCounts:
    """Number of images that `--value-range` has brought to 8 bits, and of those that it does not suit."""

    images: int = 0
    few_levels: int = 0
    """Number of images that use so little of the range that at most `FEW_LEVELS` grey levels of them are left."""
    clipped: int = 0
    """Number of images with most of their values outside of the range."""
    values: tuple[float, float] | None = None
    """The smallest and the largest value of all; None without images."""

    @staticmethod
    def of(uses: Sequence[RangeUse]) -> RangeCounts:
        """Count the images of one shard."""
        return RangeCounts(
            len(uses),
            sum(use.levels <= FEW_LEVELS for use in uses),
            sum(use.clipped > 0.5 for use in uses),
            (min(use.smallest for use in uses), max(use.largest for use in uses)) if uses else None,
        )

    def __add__(self, other: RangeCounts) -> RangeCounts:
        """Return the counts of both."""
        pairs = [values for values in (self.values, other.values) if values is not None]
        return RangeCounts(
            self.images + other.images,
            self.few_levels + other.few_levels,
            self.clipped + other.clipped,
            (min(low for low, _ in pairs), max(high for _, high in pairs)) if pairs else None,
        )


@dataclass(frozen=True)
class ShardRecord:
    """The record of a finished shard."""

    shard: Shard | None
    """None when every image was rejected."""
    index_bytes: int
    """Size of the index file."""
    rejected: tuple[Rejection, ...]
    digests: tuple[str, ...]
    """SHA-256 of the files of the rejected images."""
    fingerprints: tuple[FileFingerprint, ...]
    """Of the files that it was built from, in the order in which the plan first names them."""
    of_16_bits: int = 0
    """Number of images of 16 bits a channel, whose upper 8 bits were kept."""
    of_12_bits: int = 0
    """Number of these without a value that needs more than 12 bits."""
    range_counts: RangeCounts = RangeCounts()

    def is_complete_in(self, output: Path) -> bool:
        """Return True if tar and index are there, with their sizes."""
        if self.shard is None:
            return True
        sizes = ((self.shard.tar, self.shard.bytes), (self.shard.index, self.index_bytes))
        return all((output / name).is_file() and (output / name).stat().st_size == size for name, size in sizes)


def save_record(output: Path, stem: str, record: ShardRecord, sums: ColorSums | None) -> None:
    """Commit a shard as finished; its tar and index must have their final names."""
    folder = output / UNFINISHED_NAME
    if sums is not None:
        atomic_write(folder / f"{stem}.npz", sums.to_bytes())
    # After a power cut, no record may be there without the files that it describes.
    for changed in (output, folder):
        flush(changed)
    atomic_write(folder / f"{stem}.json", json.dumps(asdict(record), ensure_ascii=False).encode())


class BuildState:
    """The folder `.unfinished` in the output of a running build."""

    def __init__(self, output: Path, short_side: int) -> None:
        """Touch nothing yet."""
        self._output = output
        self._short_side = short_side
        self.folder = output / UNFINISHED_NAME
        self.drawn = self.folder / _DRAWN_NAME
        self.scratch = self.folder / _SCRATCH_NAME

    def finished(self, shards: Iterable[PlannedShard]) -> dict[str, ShardRecord]:
        """Return the records of the shards that are complete, by stem."""
        records = {}
        recorded = _stems(self.folder)
        for shard in shards:
            with contextlib.suppress(OSError):
                if shard.stem in recorded:
                    record, _ = self._load(shard)
                    if record.is_complete_in(self._output):
                        records[shard.stem] = record
        return records

    def load_all(self, shards: Iterable[PlannedShard]) -> Iterator[tuple[PlannedShard, ShardRecord, ColorSums | None]]:
        """Yield each shard with its record and, if it counts in the statistics, its sums.

        Raises:
            OSError: one of them is not finished, or cannot be read.
        """
        _stems(self.folder)  # network file systems may not see a new file until the folder is listed
        for shard in shards:
            yield shard, *self._load(shard)

    def discard(self, stems: Iterable[str]) -> None:
        """Count shards as not finished."""
        for stem in stems:
            (self.folder / f"{stem}.json").unlink(missing_ok=True)

    def begin(self, fingerprint: dict[str, Any]) -> None:
        """Continue the build that is there, or begin one; another one without a finished sample is removed.

        Raises:
            InputError: another build is unfinished there; nothing is touched.
        """
        path = self.folder / _PLAN_NAME
        if path.is_file():
            try:
                self._check_same(path, fingerprint)
            except InputError:
                # A build whose images were all rejected has records, but no shard that could be lost.
                if self._has_samples():
                    raise
            else:
                self._remove_partials()
                return
        # The plan comes first: without it, there is nothing to continue.
        self.remove()
        self.folder.mkdir()
        atomic_write(path, json.dumps(fingerprint, indent=1).encode())
        for changed in (self.folder, self._output):
            flush(changed)

    def abandon(self, error: BaseException) -> None:
        """Keep finished work; remove everything if there is none, or bad input was found before a shard was."""
        self._remove_partials()
        others = {path.name for path in self.folder.iterdir() if path.suffix != ".npz"} - {_PLAN_NAME, _DRAWN_NAME}
        if not (_stems(self.folder) if isinstance(error, InputError) else others):
            self.remove()
            if not (self._output / MANIFEST_NAME).exists():
                remove_stray_files(self._output, keep=())

    def remove(self) -> None:
        """Remove the folder as far as possible: next to a manifest, the rest does no harm until the next run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _has_samples(self) -> bool:
        names = {path.name for path in self._output.iterdir()}
        return any(f"{stem}.tar" in names for stem in _stems(self.folder))

    def _remove_partials(self) -> None:
        for folder in (self.folder, self.scratch):
            if folder.is_dir():
                remove_partial_files(folder)

    def _load(self, shard: PlannedShard) -> tuple[ShardRecord, ColorSums | None]:
        path = self.folder / f"{shard.stem}.json"
        try:
            record = parse_json(ShardRecord, path.read_bytes(), str(path))
            sums = ColorSums.load(path.with_suffix(".npz"), self._short_side) if shard.in_statistics else None
        except OSError:
            raise
        except Exception as error:  # NumPy raises nearly anything for a broken file
            raise OSError(f"{path} or its sums cannot be read: {error}") from error
        return record, sums

    def _check_same(self, path: Path, fingerprint: dict[str, Any]) -> None:
        try:
            other = difference(json.loads(path.read_bytes()), fingerprint)
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}); use another --output, or remove the folder") from error
        if other:
            raise InputError(
                f"--output is {self._output}: it holds an unfinished build with {other}; "
                "continue that one, use another folder, or remove it"
            )


@contextlib.contextmanager
def resume_build(
    output: Path, short_side: int, fingerprint: dict[str, Any], keep_records: bool
) -> Iterator[BuildState]:
    """Continue or begin the build with this fingerprint in a claimed folder; remove its state once it is complete.

    With `keep_records`, finished shards of an earlier run count, and those of this run are kept if the body raises.
    Without, as where the broken files of a complete folder are built again, nothing is kept.

    Raises:
        InputError: another build is unfinished there; nothing is touched.
    """
    build_state = BuildState(output, short_side)
    if not keep_records:
        build_state.remove()
    build_state.begin(fingerprint)
    try:
        yield build_state
    except BaseException as error:
        build_state.abandon(error) if keep_records else build_state.remove()
        raise
    build_state.remove()


def changed_shards(
    shards: Sequence[PlannedShard], records: Mapping[str, ShardRecord], raw: RawFiles, output: Path
) -> set[str]:
    """Return the stems of finished shards with a file whose size or time has changed, and name them on stderr.

    A file that was touched counts as changed: that costs some shards, a mixture of two sources the data set.

    Raises:
        InputError: so many files have changed that this is another source.
    """
    stems, changed, files = set(), [], 0
    for shard in shards:
        if shard.stem not in records:
            continue
        now = raw.fingerprints(image.ref for image in shard.images)
        before = dict(zip(now, records[shard.stem].fingerprints, strict=True))
        other = [file for file in now if now[file] != before[file]]
        files += len(now)
        changed += other
        if other:
            stems.add(shard.stem)
    if len(changed) > _CHANGED_FILES * files:
        raise InputError(
            f"--output is {output}: it holds an unfinished build with other image files: {printable(changed[0])} and "
            f"{len(changed) - 1} more have changed in size or time since; restore them with their times, use another "
            "folder, or remove it"
        )
    if stems:
        print(
            f"build_shards: {printable(changed[0])!r} and {len(changed) - 1} more files have changed in size or time "
            f"since their shards were finished: {len(stems)} shards are built again",
            file=sys.stderr,
        )
    return stems


def finished_shards(output: Path) -> int:
    """Return the number of finished shards of an unfinished build in `output`."""
    try:
        return len(_stems(output / UNFINISHED_NAME))
    except OSError:
        return 0


def _stems(folder: Path) -> set[str]:
    names = (path.name for path in folder.iterdir())
    return {name.removesuffix(".json") for name in names if re.fullmatch(rf"({'|'.join(SPLITS)})-\d+\.json", name)}
