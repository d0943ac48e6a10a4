"""ILSVRC-2012 as the official archives, read in place.

    IN/ILSVRC2012_img_train.tar        a tar of one tar for each class, <wnid>.tar
    IN/ILSVRC2012_img_val.tar          the images side by side
    IN/ILSVRC2012_devkit_t12.tar.gz    ids and names of the classes (data/meta.mat), and the classes of the val images

Only the headers of the tars are read here; an image is located by its offset in the outer tar. Its name is the same as
in class folders, so that both give the same shards.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from errors import InputError
from preprocess.images.formats import MAGIC_BYTES, format_of
from preprocess.sources.catalogue import ArchiveRef, Found, printable
from preprocess.sources.labels import check_same
from preprocess.sources.skipping import Skipped, ending_of, is_image_name
from preprocess.sources.source import Listing
from preprocess.sources.tar_headers import Member, open_tar, read_members

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    return any((root / name).is_file() for name in (TRAIN, VAL))


def read(root: Path) -> Listing:
    """List the images of the official archives.

    Raises:
        InputError: an archive is missing, truncated or not a tar, or images, labels and names do not fit together.
    """
    for name in (TRAIN, VAL, DEVKIT):
        if not (root / name).is_file():
            raise InputError(f"{root / name} is missing: the official archives are {TRAIN}, {VAL} and {DEVKIT}")
    names, truth = _read_devkit(root / DEVKIT)
    skipped = Skipped()
    found = {"train": _found_train(root / TRAIN, names, skipped), "val": _found_val(root / VAL, truth, skipped)}
    return Listing(names, found, skipped=skipped)


def _found_train(path: Path, names: Mapping[str, str], skipped: Skipped) -> Iterator[Found]:
    with open_tar(path) as file:
        tars = {
            posixpath.basename(member.name).removesuffix(".tar"): member
            for member in read_members(file, path)
            if member.name.endswith(".tar")
        }
        check_same(tars, path, names, DEVKIT)
        for name, tar in tars.items():
            inner = read_members(file, path / f"{name}.tar", tar.offset, tar.offset + tar.size)
            for image in _images(file, inner, path / f"{name}.tar", skipped):
                canonical_name = f"train/{name}/{image.name.removeprefix('./')}"
                yield "train", name, canonical_name, ArchiveRef(TRAIN, image.offset, image.size)


def _found_val(path: Path, truth: Sequence[str], skipped: Skipped) -> Iterator[Found]:
    with open_tar(path) as file:
        members = _images(file, read_members(file, path), path, skipped)
        images = {posixpath.basename(image.name): image for image in members}
    if len(images) != len(truth):
        raise InputError(f"{path} holds {len(images)} images, but the ground truth in {DEVKIT} is of {len(truth)}")
    for (file_name, image), name in zip(sorted(images.items()), truth, strict=True):
        yield "val", name, f"val/{name}/{file_name}", ArchiveRef(VAL, image.offset, image.size)


def _images(file: BinaryIO, members: Iterable[Member], path: Path, skipped: Skipped) -> Iterator[Member]:
    for member in members:
        name = posixpath.basename(member.name)
        verdict = is_image_name(name)
        if verdict and not member.plain:
            raise InputError(f"{path}: {printable(member.name)!r} is a link, a folder or sparse, not a plain file")
        if not member.plain:
            continue
        if _holds_image(file, member) if verdict is None else verdict:
            yield member
        else:
            skipped[ending_of(name)] += 1


def _holds_image(file: BinaryIO, member: Member) -> bool:
    head = os.pread(file.fileno(), min(MAGIC_BYTES, member.size), member.offset)
    return format_of(head) is not None


def _read_devkit(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return WNID -> words of the classes that have images, and the WNID of each val image in the order of names."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            files = {
                name: tar.extractfile(member)
                for member in tar
                for name in (_META, _GROUND_TRUTH)
                if member.isreg() and f"/{member.name}".endswith(f"/{name}")
            }
            contents = {name: file.read() for name, file in files.items() if file is not None}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is truncated or not a .tar.gz: {error}") from error
    for name in (_META, _GROUND_TRUTH):
        if name not in contents:
            raise InputError(f"{path} holds no {name}")
    synsets = _read_synsets(contents[_META], path)
    lines = contents[_GROUND_TRUTH].decode("ascii", "replace").split()
    for number, line in enumerate(lines, start=1):
        if line not in synsets:
            raise InputError(
                f"{path}: line {number} of {_GROUND_TRUTH} is {line!r}, the id of none of its {len(synsets)} classes"
            )
    return dict(synsets.values()), [synsets[line][0] for line in lines]


def _read_synsets(data: bytes, path: Path) -> dict[str, tuple[str, str]]:
    """Return ILSVRC2012_ID in digits -> WNID and words, only of the classes: `meta.mat` also has their ancestors."""
    from scipy.io import loadmat  # other layouts do not need it

    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"].reshape(-1)
        return {
            str(int(synset["ILSVRC2012_ID"])): (str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
    except Exception as error:
        # A broken file raises nearly anything: scipy parses a format of many kinds.
        raise InputError(f"{path}: {_META} is not a table of synsets: {error!r}") from error
