"""`python -m preprocess.build_shards`: raw images -> a folder of WebDataset shards that describes itself."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends it, without a traceback

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import CommandParser
from errors import InputError
from interrupts import Interrupted, raise_on_signals
from machine_limits import cpu_count
from object_store import StoreError, StoreFolder, is_uri, join
from preprocess.build import build
from preprocess.manifest import MANIFEST_NAME, parse_manifest
from preprocess.plan import BuildOptions
from preprocess.publish import default_folder, publish
from preprocess.run.pool import WorkerDiedError
from preprocess.sources.catalogue import SPLITS, printable
from preprocess.sources.layouts import LAYOUTS
from preprocess.state.build_state import finished_shards
from preprocess.state.output import option_difference
from preprocess.summary import build_summary
from preprocess.verify import Fault, verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    That is 0, 2 for bad input or no data set to verify, 1 for a failure or a broken data set, 128 + n for signal n.
    """
    try:
        parsed = vars(_parser().parse_args(arguments))
        verifying, deep = parsed.pop("verify"), parsed.pop("deep")
        place, folder = parsed["output"], parsed.pop("staging")
        if not is_uri(place) and folder is not None:
            raise InputError(f"--staging is {folder}: --output {place} is a folder itself; leave it out")
        parsed["output"] = (folder or default_folder(place)) if is_uri(place) else Path(place)
        if deep and not verifying:
            raise InputError("--deep needs --verify; add it")
        parsed |= {name: tuple(parsed[name]) for name in ("value_range", "splits") if parsed[name] is not None}
        options = BuildOptions(**parsed)
        return _verify(place, options, deep) if verifying else _build(place, options)
    except StoreError as error:
        return _fail(1 if error.is_transient else 2, str(error))
    except InputError as error:
        return _fail(2, str(error))
    except Interrupted as interrupt:
        return _fail(interrupt.exit_code, "interrupted" if verifying else f"interrupted; {_left(options)}")
    except WorkerDiedError as error:
        return _fail(1, str(error) if verifying else f"{error}; {_left(options)}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem = f"{where}{error.strerror or error}"
        return _fail(1, f"cannot verify: {problem}" if verifying else f"cannot build: {problem}; {_left(options)}")


def _build(place: str, options: BuildOptions) -> int:
    start = time.monotonic()
    if is_uri(place):
        _check_store(place, options)
    outcome = build(options)
    uploaded = publish(options.output, place) if is_uri(place) else 0
    seconds = time.monotonic() - start
    place = printable(place)
    if uploaded:
        print(f"{uploaded} files uploaded from {printable(str(options.output))}, which may now be removed")
    if outcome.nothing_to_do:
        print(f"{place} is complete ({outcome.manifest.name}): nothing to do")
    else:
        built = "" if outcome.built == outcome.shards else f"{outcome.built} of {outcome.shards} shards built, "
        lines = build_summary(outcome.manifest, outcome.counts, built, seconds)
        print(*lines, sep="\n", end=f": {place}\n")
    return 0


def _check_store(uri: str, options: BuildOptions) -> None:
    """Raise `InputError` before anything is built for a store that cannot be read, or holds another data set."""
    store = StoreFolder(uri)
    if MANIFEST_NAME not in store.sizes():
        return
    difference = option_difference(parse_manifest(uri), options)
    if difference is not None:
        problem = f"it is a complete data set with {difference}"
        raise InputError(f"--output is {uri}: {problem}; use another folder, or remove it")


def _verify(place: str, options: BuildOptions, deep: bool) -> int:
    manifest, faults = verify(place if is_uri(place) else options.output, options, deep)
    for fault in faults:
        _fail(1, f"{join(place, fault.file)} {fault.problem}")
    shards = len(list(manifest.shards()))
    samples = sum(split.samples for split in manifest.splits.values())
    found = f"broken files: {len(faults)}; {_advice(place, faults)}" if faults else "intact"
    print(f"{manifest.name}: {samples:,} samples in {shards} shards, {found}: {printable(place)}")
    return 1 if faults else 0


def _advice(place: str, faults: Sequence[Fault]) -> str:
    if is_uri(place):
        return f"remove {printable(place)}, and run the command that built it again"
    if any(fault.in_manifest for fault in faults):
        return f"the manifest is wrong, which no rerun repairs; remove {printable(place)}, build again"
    return "the command that built it repairs them"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m preprocess.build_shards",
        description="Turn raw images into a folder of WebDataset shards with index, manifest and statistics.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", type=Path, metavar="IN", help="folder with IN/train/<class>/** and IN/val/<class>/**, "
        "IN/<class>/**, or another layout; without it, the embedded sample is drawn")  # fmt: skip
    add("--layout", choices=LAYOUTS, default="auto", help="layout of the images in IN: class folders, the official "
        "archives of ILSVRC-2012, Kaggle's folders, Tiny-ImageNet's, Hugging Face's Parquet files, CIFAR-10's "
        "pickles, WebDataset's tars; by default, detected")  # fmt: skip
    add("--output", metavar="DIR", default="shards", help="folder to write, or URI in an object store (s3://...)")
    add("--staging", type=Path, metavar="DIR", help="with a URI: folder that the shards are built in before they are "
        "uploaded; by default, in the user's cache")  # fmt: skip
    add("--name", help="name of the data set; by default, the input folder's")
    add("--short-side", type=int, default=256, help="pixels of the short side of every sample")
    add("--quality", type=int, default=95, help="JPEG quality")
    add("--seed", type=int, default=0, help="seed of the order of the samples and of the choice for val")
    add("--workers", type=int, metavar="N", default=cpu_count(), help="processes")
    add("--ray", metavar="ADDRESS", help="build on all nodes of a Ray cluster: `auto` for that of this "
        "machine or job, or HOST:PORT of its head; every node needs input and output under the same path")  # fmt: skip
    add("--val-fraction", type=float, metavar="F", help="fraction of each class to keep for val, if IN has no val")
    add("--test-as-val", action="store_true", help="use IN's test split as val, if IN has no val: models are then "
        "selected on the test images")  # fmt: skip
    add(
        "--splits", nargs="+", choices=SPLITS, help="build only these splits, such as val to evaluate published weights"
    )
    add("--classes", type=Path, metavar="PATH", help="folder of shards, or file with a class id on each line, whose "
        "classes and labels the images get: IN may have only some of them")  # fmt: skip
    add("--labels", type=Path, metavar="FILE", help="CSV, TSV or list with the name and the label of each image in IN")
    add("--image-column", metavar="NAME", help="column of Parquet files with the images, or of --labels with "
        "their names; by default, `image` or alike")  # fmt: skip
    add("--label-column", metavar="NAME", help="column of the same with the labels; by default, `label` or "
        "alike")  # fmt: skip
    add("--shard-samples", type=int, default=1000, help="maximum number of images in a shard")
    add("--max-rejected", type=float, metavar="F", default=0.01, help="fraction of all images that may be unreadable")
    add("--verify", action="store_true", help="build nothing: compare the files in DIR with its manifest and name "
        "the broken ones; needs only --output")  # fmt: skip
    add("--deep", action="store_true", help="with --verify: also decode every image and read every label")
    add("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="values that become black and white in "
        "images of one channel with more than 8 bits, such as floating-point TIFFs; by default, the upper 8 of 16 bits "
        "are kept, and others rejected")  # fmt: skip
    add("--apply-exif", action="store_true", help="turn images as their EXIF orientation says; ImageFolder does not")
    return parser


def _open_closed_streams() -> None:
    # If a standard stream was closed (`2>&-`), the next file gets its number: errors would go into a shard.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            assert descriptor == number
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w"))


def _write_any_name() -> None:
    # A name that stdout's encoding lacks must not fail a finished build; stderr escapes it by itself.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="backslashreplace")


def _left(options: BuildOptions) -> str:
    finished = finished_shards(options.output)
    if not finished:
        return "no shard was finished"
    return f"finished shards are kept ({finished}): the same command continues"


def _fail(code: int, message: str) -> int:
    print(f"build_shards: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    _open_closed_streams()
    _write_any_name()
    # A shell starts background jobs with SIGINT ignored: keep that.
    in_background = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    raise_on_signals(signal.SIGTERM, *(() if in_background else (signal.SIGINT,)))
    sys.exit(main())
