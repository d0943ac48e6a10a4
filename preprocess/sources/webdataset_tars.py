"""WebDataset tars as other tools write them, such as img2dataset and the Hub's ImageNet, read in place.

    IN/*.tar     (or in IN/data, or in folders of splits)     with <key>.jpg, and <key>.cls or <key>.json next to it

A split is a word in the name of the tar or of its folder (`imagenet1k-train-0000.tar`). The label is the text of `cls`,
or a field of `json` (`label` or alike, or --label-column). Class ids are the wnids in the keys where every image of a
class has the same one, else the labels. Images are named after their keys, and after tar and key where keys repeat.
Only headers and labels are read here.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from errors import InputError
from preprocess.sources.catalogue import IMAGE_ENDINGS, SPLITS, ArchiveRef, Found, printable
from preprocess.sources.columns import LABEL_COLUMNS, choose_column, class_ids, wnids_of
from preprocess.sources.folders import split_folders
from preprocess.sources.imagenet_parts import is_class_tar
from preprocess.sources.skipping import Skipped
from preprocess.sources.source import Listing, SourceOptions
from preprocess.sources.splits import split_of
from preprocess.sources.tar_headers import Member, open_tar, read_members

_IMAGES = {ending.removeprefix(".") for ending in (*IMAGE_ENDINGS, ".gif", ".avif", ".jfif")}
_LABELS = ("cls", "json")
_PEEKED = 16  # samples of the first tar
_WITHOUT_IMAGE = "samples without an image"


class _Sample(NamedTuple):
    split: str
    label: int | str
    key: str
    ref: ArchiveRef


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    first = next((path for paths in _files(root).values() for path in paths), None)
    if first is None:
        return False
    try:
        with open_tar(first) as file:
            return any(_image(sample) and _has_label(sample) for sample in islice(_samples(file, first), _PEEKED))
    except InputError:
        return False


def is_in_folders(root: Path) -> bool:
    """Return True if the tars lie in folders of splits, which are then no class folders."""
    return any(path.parent not in (root, root / "data") for paths in _files(root).values() for path in paths)


def read(root: Path, options: SourceOptions) -> Listing:
    """List the images of the tars.

    Raises:
        InputError: there are no tars, one is truncated or no tar, or a sample has no label.
    """
    files, skipped = _files(root), Skipped()
    if not files:
        raise InputError(f"input folder {root} has no *.tar, nor has its folder data")
    is_split = None not in files
    samples = [
        sample
        for split, paths in files.items()
        for path in paths
        for sample in _read_tar(root, path, split or "train", options, skipped)
    ]
    if not samples:
        raise InputError(f"input folder {root} has tars without images; use samples of an image and its label")
    ids = wnids_of((sample.label, posixpath.basename(sample.key)) for sample in samples)
    ids = ids or class_ids(sample.label for sample in samples)
    found: dict[str, list[Found]] = {sample.split: [] for sample in samples}
    for name, sample in zip(_canonical_names(samples, ids, is_split), samples, strict=True):
        found[sample.split].append((sample.split, ids[sample.label], name, sample.ref))
    return Listing({name: name for name in ids.values()}, found, skipped=skipped, is_split=is_split)


def _files(root: Path) -> dict[str | None, list[Path]]:
    """Return the tars of each split; None is the split of tars if not all names and folders tell one."""
    for folder in (root, root / "data"):
        within = [*split_folders(folder).values()] if folder.is_dir() else []
        paths = sorted(path for each in (folder, *within) for path in each.glob("*.tar") if not is_class_tar(path))
        if paths:
            files: dict[str | None, list[Path]] = {}
            for path in paths:
                files.setdefault(_split_of(path, folder), []).append(path)
            return {None: paths} if None in files else {split: files[split] for split in SPLITS if split in files}
    return {}


def _split_of(path: Path, folder: Path) -> str | None:
    words = re.split(r"[^A-Za-z]+", path.stem if path.parent == folder else path.parent.name)
    return next((split for split in map(split_of, words) if split), None)


def _read_tar(root: Path, path: Path, split: str, options: SourceOptions, skipped: Skipped) -> Iterator[_Sample]:
    name = path.relative_to(root).as_posix()
    with open_tar(path) as file:
        for sample in _samples(file, path):
            image = _image(sample)
            if image is None:
                skipped[_WITHOUT_IMAGE] += 1
                continue
            member = sample[image]
            label = _label(file, sample, f"{path}, sample {printable(sample['__key__'])}", options.label_column)
            key = f"{posixpath.basename(sample['__key__'])}.{image}"
            yield _Sample(split, label, key, ArchiveRef(name, member.offset, member.size))


def _samples(file: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar as webdataset groups them: suffix -> member, and `__key__`."""
    from webdataset.tariterators import group_by_keys  # imports torch where it is installed: other layouts do not wait

    members = ({"fname": member.name, "data": member, "__url__": str(path)} for member in _plain(file, path))
    try:
        yield from group_by_keys(members)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no tar of samples: {error.args[0]}") from error


def _plain(file: BinaryIO, path: Path) -> Iterator[Member]:
    return (member for member in read_members(file, path) if member.plain)


def _image(sample: Mapping[str, Any]) -> str | None:
    return next((suffix for suffix in sample if suffix in _IMAGES), None)


def _has_label(sample: Mapping[str, Any]) -> bool:
    return any(suffix in sample for suffix in _LABELS)


def _label(file: BinaryIO, sample: Mapping[str, Any], where: str, column: str | None) -> int | str:
    content = {suffix: sample[suffix] for suffix in _LABELS if suffix in sample}
    if "cls" in content and column is None:
        label: object = _read(file, content["cls"]).decode("utf-8", "replace").strip()
    elif "json" in content:
        try:
            fields = json.loads(_read(file, content["json"]))
        except ValueError as error:
            raise InputError(f"{where} has a json that cannot be read: {error}") from error
        fields = fields if isinstance(fields, dict) else {}
        label = fields[choose_column(fields, "--label-column", column, LABEL_COLUMNS, where)]
    else:
        listed = ", ".join(sorted(name for name in sample if not name.startswith("__")))
        raise InputError(f"{where} has no cls or json with a label, only {listed}; add one, or use --labels FILE")
    if isinstance(label, bool) or not isinstance(label, int | str) or label in ("", -1, "-1"):
        raise InputError(f"{where} has label {label!r}; use a number from 0 or a name")
    return label


def _read(file: BinaryIO, member: Member) -> bytes:
    return os.pread(file.fileno(), member.size, member.offset)


def _canonical_names(samples: Sequence[_Sample], ids: Mapping[int | str, str], is_split: bool) -> list[str]:
    folders = [f"{f'{sample.split}/' if is_split else ''}{ids[sample.label]}" for sample in samples]
    names = [f"{folder}/{sample.key}" for folder, sample in zip(folders, samples, strict=True)]
    if len(set(names)) == len(names):
        return names
    return [
        f"{folder}/{posixpath.splitext(sample.ref.file)[0].replace('/', '_')}_{sample.key}"
        for folder, sample in zip(folders, samples, strict=True)
    ]
