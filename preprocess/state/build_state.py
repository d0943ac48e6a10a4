"""`.unfinished`, what a build keeps in its output folder until the manifest is there, so that it can be continued.

plan.json     what makes the build the same build, written first
<stem>.npz    exact sums over the pixels of a shard of the train split
<stem>.json   record of a finished shard, written last: with it, tar, index and sums are there, whole and on disk
drawn/        the embedded sample's raw images, drawn anew by each run
scratch/      what containers of the input were unpacked into
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atomic_files import flush_folder, remove_partials, write_whole
from errors import InputError
from preprocess.images.statistics import RgbSums
from preprocess.manifest import MANIFEST_NAME, Rejection, Shard
from preprocess.plan import PlannedShard
from preprocess.state.build_fingerprint import difference
from preprocess.state.file_fingerprint import Stamp
from preprocess.state.output_folder import UNFINISHED_NAME, remove_strays

_PLAN_NAME = "plan.json"
_DRAWN_NAME = "drawn"
_SCRATCH_NAME = "scratch"


@dataclass(frozen=True)
class ShardRecord:
    """What a finished shard is."""

    shard: Shard | None
    """None when every image was rejected."""
    index_bytes: int
    """Size of the index file."""
    rejected: tuple[Rejection, ...]
    digests: tuple[str, ...]
    """Of what the files of the rejected images held."""
    stamps: tuple[Stamp, ...]
    """Of the files that it was built from, in the order in which the plan first names them."""

    def lies_in(self, output: Path) -> bool:
        """Return whether tar and index are there, with their sizes."""
        if self.shard is None:
            return True
        sizes = ((self.shard.tar, self.shard.bytes), (self.shard.index, self.index_bytes))
        return all((output / name).is_file() and (output / name).stat().st_size == size for name, size in sizes)


def save_record(output: Path, stem: str, record: ShardRecord, sums: RgbSums | None) -> None:
    """Commit a shard as finished, after its tar and index have got their names."""
    folder = output / UNFINISHED_NAME
    if sums is not None:
        write_whole(folder / f"{stem}.npz", sums.to_bytes())
    # After a power cut, no record may be there without what it is the record of.
    for changed in (output, folder):
        flush_folder(changed)
    write_whole(folder / f"{stem}.json", json.dumps(asdict(record), ensure_ascii=False).encode())


class Unfinished:
    """The folder `.unfinished` in the output of a build that is at work."""

    def __init__(self, output: Path, short_side: int) -> None:
        """Touch nothing yet."""
        self._output = output
        self._short_side = short_side
        self.folder = output / UNFINISHED_NAME

    @property
    def drawn(self) -> Path:
        """Where the embedded sample is drawn."""
        return self.folder / _DRAWN_NAME

    @property
    def scratch(self) -> Path:
        """Where containers of the input are unpacked."""
        return self.folder / _SCRATCH_NAME

    def finished(self, shards: Iterable[PlannedShard]) -> dict[str, ShardRecord]:
        """Return the records of those shards of which all is there, by stem."""
        records = {}
        there = self._stems()
        for shard in shards:
            with contextlib.suppress(OSError):
                if shard.stem in there:
                    record, _ = self._load(shard)
                    if record.lies_in(self._output):
                        records[shard.stem] = record
        return records

    def load_all(self, shards: Iterable[PlannedShard]) -> Iterator[tuple[PlannedShard, ShardRecord, RgbSums | None]]:
        """Yield what each shard left, one at a time: its record, and its sums if it is of the train split.

        Raises:
            OSError: one of them is not finished, or cannot be read.
        """
        self._stems()  # a network file system may go on believing that a file is not there until the folder is listed
        for shard in shards:
            yield shard, *self._load(shard)

    def discard(self, stems: Iterable[str]) -> None:
        """Let shards count as not finished."""
        for stem in stems:
            (self.folder / f"{stem}.json").unlink(missing_ok=True)

    def begin(self, identity: dict[str, Any]) -> None:
        """Continue the build that is there, or begin one.

        Raises:
            InputError: another build is unfinished there; nothing is touched.
        """
        path = self.folder / _PLAN_NAME
        if path.is_file():
            self._check_same(path, identity)
            self._remove_partials()
            return
        # The plan comes first: without it, there is nothing to continue.
        self.remove()
        self.folder.mkdir()
        write_whole(path, json.dumps(identity, indent=1).encode())
        for changed in (self.folder, self._output):
            flush_folder(changed)

    def give_up(self, error: BaseException) -> None:
        """Keep what is whole; where nothing is, or the input was found bad before a shard was, remove everything."""
        self._remove_partials()
        others = {path.name for path in self.folder.iterdir() if path.suffix != ".npz"} - {_PLAN_NAME, _DRAWN_NAME}
        if not (self._stems() if isinstance(error, InputError) else others):
            self.remove()
            if not (self._output / MANIFEST_NAME).exists():
                remove_strays(self._output, keep=())

    def remove(self) -> None:
        """Remove the folder, or what of it can be removed: beside a manifest it does no harm until the next run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_partials(self) -> None:
        for folder in (self.folder, self.scratch):
            if folder.is_dir():
                remove_partials(folder)

    def _stems(self) -> set[str]:
        return _stems(self.folder)

    def _load(self, shard: PlannedShard) -> tuple[ShardRecord, RgbSums | None]:
        path = self.folder / f"{shard.stem}.json"
        try:
            page = json.loads(path.read_bytes())
            record = ShardRecord(
                shard=page["shard"] and Shard(**page["shard"]),
                index_bytes=page["index_bytes"],
                rejected=tuple(Rejection(**entry) for entry in page["rejected"]),
                digests=tuple(page["digests"]),
                stamps=tuple(entry and (entry[0], entry[1]) for entry in page["stamps"]),
            )
            sums = RgbSums.load(path.with_suffix(".npz"), self._short_side) if shard.split == "train" else None
        except OSError:
            raise
        except Exception as error:  # what is broken raises nearly anything
            raise OSError(f"{path} or the sums beside it cannot be read: {error}") from error
        return record, sums

    def _check_same(self, path: Path, identity: dict[str, Any]) -> None:
        try:
            other = difference(json.loads(path.read_bytes()), identity)
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} cannot be read ({error}): choose another --output, or remove the folder"
            ) from error
        if other:
            raise InputError(
                f"output folder {self._output} holds an unfinished build with {other}: "
                "continue that one, choose another --output, or remove the folder"
            )


@contextlib.contextmanager
def continued(output: Path, short_side: int, identity: dict[str, Any], keep_records: bool) -> Iterator[Unfinished]:
    """Continue the build with this identity in a folder that is ours, or begin it; the body completes it.

    When the body raises, what is whole is kept for the next time.

    Args:
        output: the output folder, claimed.
        short_side: of the samples.
        identity: as `identity()` says.
        keep_records: whether those of an earlier run count, and this one's stay if it ends early; not so where the
            broken files of a complete folder are built again.

    Raises:
        InputError: another build is unfinished there; nothing is touched.
    """
    unfinished = Unfinished(output, short_side)
    if not keep_records:
        unfinished.remove()
    unfinished.begin(identity)
    try:
        yield unfinished
    except BaseException as error:
        unfinished.give_up(error) if keep_records else unfinished.remove()
        raise
    unfinished.remove()


def finished_shards(output: Path) -> int:
    """Return how many shards of an unfinished build in `output` are finished."""
    try:
        return len(_stems(output / UNFINISHED_NAME))
    except OSError:
        return 0


def _stems(folder: Path) -> set[str]:
    names = (path.name for path in folder.iterdir())
    return {name.removesuffix(".json") for name in names if re.fullmatch(r"(train|val)-\d+\.json", name)}
