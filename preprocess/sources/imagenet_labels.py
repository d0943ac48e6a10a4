"""Names of ImageNet's classes and the classes of its val images, from whichever of the official files is there.

ILSVRC2012_devkit_t12.tar.gz, or what it unpacks to          names, and the classes in the order of the images
LOC_synset_mapping.txt, LOC_val_solution.csv                 the same, from Kaggle
Annotations/CLS-LOC/val/<image>.xml                          the boxes, each with its class
"""

from __future__ import annotations

import csv
import io
import tarfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from errors import InputError
from preprocess.sources.labels import read_lines, read_names

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SOLUTION = "LOC_val_solution.csv"
MAPPING = "LOC_synset_mapping.txt"
ANNOTATIONS = "Annotations/CLS-LOC/val"
WHERE_FROM = (
    f"the classes of the val images are in {DEVKIT} (from image-net.org), or in {SOLUTION} or ILSVRC/{ANNOTATIONS} "
    "(from Kaggle's ImageNet Object Localization Challenge)"
)
_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class ClassNames:
    """Class id -> name, with the file that lists them."""

    names: Mapping[str, str]
    listed: str


@dataclass(frozen=True)
class ValLabels:
    """The classes of the val images: by name, or in the order of the names."""

    listed: Path
    by_name: Mapping[str, str] | None = None
    in_order: Sequence[str] = ()

    def match(self, files: Collection[str], where: Path) -> Mapping[str, str]:
        """Return name -> class id; raise `InputError` if there are other than these `files` in `where`."""
        if self.by_name is not None:
            return self.by_name
        if len(files) != len(self.in_order):
            raise InputError(
                f"{where} holds {len(files)} images, but the ground truth in {self.listed.name} is of "
                f"{len(self.in_order)}; unpack it again"
            )
        return dict(zip(sorted(files), self.in_order, strict=True))


@dataclass(frozen=True)
class _Devkit:
    names: dict[str, str]
    truth: list[str]
    path: Path


def read_class_names(folders: Sequence[Path]) -> ClassNames | None:
    """Return the names of the classes from the first file that is in one of the folders; None if there is none.

    Raises:
        InputError: the file cannot be read.
    """
    mapping = _first(folders, MAPPING)
    if mapping is not None:
        return ClassNames(read_names(mapping, " "), str(mapping))
    devkit = _read_devkit(folders)
    return None if devkit is None else ClassNames(devkit.names, devkit.path.name)


def read_val_labels(folders: Sequence[Path], known: ClassNames | None) -> ValLabels | None:
    """Return the classes of the val images from the first file that is in one of the folders; None if there is none.

    All of them have to be `known`, if a file lists the classes.

    Raises:
        InputError: the file cannot be read, or has another class.
    """
    solution = _first(folders, SOLUTION)
    if solution is not None:
        return ValLabels(solution, _read_solution(solution, known))
    devkit = _read_devkit(folders)
    if devkit is not None:
        return ValLabels(devkit.path, in_order=devkit.truth)
    annotations = _first(folders, ANNOTATIONS)
    return None if annotations is None else ValLabels(annotations, _read_annotations(annotations, known))


def _first(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _read_annotations(folder: Path, known: ClassNames | None) -> dict[str, str]:
    """Read the class of the first box of each image."""
    class_of = {}
    for path in sorted(folder.glob("*.xml")):
        try:
            class_id = ElementTree.parse(path).findtext("object/name") or ""
        except (ElementTree.ParseError, OSError) as error:
            raise InputError(f"{path} cannot be read as XML: {error}") from error
        _check_class(class_id, str(path), known)
        class_of[f"{path.stem}.JPEG"] = class_id
    return class_of


def _check_class(class_id: str, where: str, known: ClassNames | None) -> None:
    if not class_id or (known is not None and class_id not in known.names):
        raise InputError(f"{where} has class {class_id!r}, which {known.listed if known else 'no list'} does not list")


def _read_solution(path: Path, known: ClassNames | None) -> dict[str, str]:
    """Read `ImageId,PredictionString`: the class id is the prediction's first word, boxes follow."""
    rows = csv.reader(read_lines(path), strict=True)
    class_of = {}
    try:
        if next(rows, None) != ["ImageId", "PredictionString"]:
            raise InputError(f"{path} does not begin with the line ImageId,PredictionString")
        listed = [(rows.line_num, row) for row in rows]
    except csv.Error as error:  # a quote that is not closed: the rest of the file would be one word
        raise InputError(f"{path}, line {rows.line_num} is not CSV: {error}") from error
    for number, row in listed:
        words = row[1].split() if len(row) == 2 else []
        if not words:
            raise InputError(f"{path}, line {number} is {','.join(row)!r}; an image id and its class should be there")
        _check_class(words[0], f"{path}, line {number}", known)
        class_of[f"{row[0]}.JPEG"] = words[0]
    return class_of


def _read_devkit(folders: Sequence[Path]) -> _Devkit | None:
    """Read the packed or unpacked devkit: words of the classes that have images, and the class of each val image."""
    for folder in folders:
        unpacked = (folder, folder / DEVKIT.removesuffix(".tar.gz"))
        if (folder / DEVKIT).is_file():
            return _parse_devkit(_read_archive(folder / DEVKIT), folder / DEVKIT)
        for path in unpacked:
            if (path / _META).is_file():
                return _parse_devkit(_read_unpacked(path), path)
    return None


def _read_unpacked(folder: Path) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in (_META, _GROUND_TRUTH) if (folder / name).is_file()}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def _read_archive(path: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(path, "r:gz") as tar:
            files = {
                name: tar.extractfile(member)
                for member in tar
                for name in (_META, _GROUND_TRUTH)
                if member.isreg() and f"/{member.name}".endswith(f"/{name}")
            }
            return {name: file.read() for name, file in files.items() if file is not None}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is truncated or not a .tar.gz: {error}") from error


def _parse_devkit(contents: Mapping[str, bytes], path: Path) -> _Devkit:
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
    return _Devkit(dict(synsets.values()), [synsets[line][0] for line in lines], path)


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
