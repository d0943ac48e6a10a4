"""`python -m preprocess.build_shards`: raw images -> a folder of WebDataset shards that describes itself."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from preprocess.build import build
from preprocess.manifest import InputError, Manifest
from preprocess.plan import BuildOptions
from preprocess.sources import printable
from preprocess.workers import WorkerDiedError


class InterruptedBySignal(BaseException):
    """SIGINT or SIGTERM arrived."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 for bad input, 1 for a failure, 128 + n for signal n."""
    start = time.monotonic()
    try:
        options = BuildOptions(**vars(_parser().parse_args(arguments)))
        manifest, built = build(options)
    except InputError as error:
        return _fail(2, str(error))
    except WorkerDiedError as error:
        return _fail(1, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(1, f"cannot build: {where}{error.strerror or error}")
    except InterruptedBySignal as interrupt:
        return _fail(128 + interrupt.args[0], "interrupted; nothing half-built is left")
    seconds = time.monotonic() - start
    print(_summary(manifest, options.output, seconds) if built else _nothing_to_do(manifest, options.output))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.build_shards",
        description="Turn raw images into a folder of WebDataset shards with index, manifest and statistics.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", type=Path, metavar="PATH", help="IN/train/<class>/** and IN/val/<class>/**, or IN/<class>/**; "
        "without it, the embedded sample is drawn")  # fmt: skip
    add("--output", type=Path, metavar="DIR", default=Path("shards"), help="folder to write")
    add("--name", help="name of the data set; by default, the input folder's")
    add("--short-side", type=int, default=256, help="pixels of the short side of every sample")
    add("--quality", type=int, default=95, help="JPEG quality")
    add("--seed", type=int, default=0, help="decides the order of the samples and the choice for val")
    add("--workers", type=int, metavar="N", default=len(os.sched_getaffinity(0)), help="processes")
    add("--val-fraction", type=float, metavar="F", help="part of each class to keep for val, if IN has no val")
    add("--shard-samples", type=int, default=1000, help="images in a shard, at most")
    add("--apply-exif", action="store_true", help="turn images as their EXIF orientation says; ImageFolder does not")
    return parser


def _raise_on_signals() -> None:
    def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature is given
        # One is enough: a second must not cut the cleaning short.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise InterruptedBySignal(number)

    signal.signal(signal.SIGTERM, interrupt)
    # A shell starts background jobs with SIGINT ignored, and means it.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)


def _summary(manifest: Manifest, output: Path, seconds: float) -> str:
    samples = sum(split.samples for split in manifest.splits.values())
    parts = " + ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    return (
        f"{manifest.name}: {parts} samples of {len(manifest.classes)} classes, {len(manifest.rejected)} rejected, "
        f"{seconds:.1f} s, {samples / seconds:.0f} images/s: {printable(str(output))}"
    )


def _nothing_to_do(manifest: Manifest, output: Path) -> str:
    return f"{printable(str(output))} is complete ({manifest.name}): nothing to do"


def _fail(code: int, message: str) -> int:
    print(f"build_shards: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    _raise_on_signals()
    sys.exit(main())
