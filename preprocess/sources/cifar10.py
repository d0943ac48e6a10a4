"""CIFAR-10, the version for Python, unpacked: pickles of 10,000 images each.

    IN/data_batch_1 .. IN/data_batch_5  IN/test_batch  IN/batches.meta     (or all of them in IN/cifar-10-batches-py)

A pickle can call any function when it is read; here it may only name the parts of arrays.
Images are named <batch>_<row>_<the name in the pickle>.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from preprocess.sources.catalogue import Found, RowRef
from preprocess.sources.labels import check_labels
from preprocess.sources.source import Container, Listing

_BATCHES = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "val"}
_META = "batches.meta"
_FOLDER = "cifar-10-batches-py"
_SIDE = 32
_HEADER = b"P6 %d %d 255\n" % (_SIDE, _SIDE)  # of a PPM, which is the pixels as they are
_ALLOWED = {
    # Name in the pickle -> the module that has it today: these were written with numpy 1.
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return getattr(importlib.import_module(_ALLOWED[module, name]), name)


def detect(root: Path) -> bool:
    """Return True if `root` has this layout, complete or not."""
    return _folder(root) is not None


def read(root: Path) -> Listing:
    """List the images of the pickles.

    Raises:
        InputError: a file is missing, or is not such a pickle.
    """
    folder = _folder(root)
    if folder is None:
        raise InputError(f"input folder {root} has no {_META} and batches, nor a folder {_FOLDER} with them")
    for name in (_META, *_BATCHES):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: CIFAR-10 is {', '.join(_BATCHES)} and {_META}")
    names = _load(folder / _META).get("label_names")
    if not isinstance(names, list) or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{folder / _META} has no label_names: it is not that of CIFAR-10")
    found: dict[str, list[Found]] = {"train": [], "val": []}
    containers = []
    for batch, split in _BATCHES.items():
        path = folder / batch
        content = _load_batch(path, len(names))
        file = path.relative_to(root).as_posix()
        for row, (label, name) in enumerate(zip(content["labels"], content["filenames"], strict=True)):
            canonical_name = f"{split}/{names[label]}/{batch}_{row:05d}_{name}"
            found[split].append((split, names[label], canonical_name, RowRef(file, row)))
        containers.append(Container(file, len(content["labels"]), read_rows))
    return Listing({name: name for name in names}, found, tuple(containers))


def read_rows(path: Path) -> Iterator[bytes]:
    """Yield each row as a PPM file.

    Raises:
        InputError: the pickle cannot be read.
    """
    planes = _load_batch(path)["data"].reshape(-1, 3, _SIDE, _SIDE)
    for image in planes.transpose(0, 2, 3, 1):
        yield _HEADER + image.tobytes()


def _folder(root: Path) -> Path | None:
    known = (_META, *_BATCHES)
    return next((folder for folder in (root, root / _FOLDER) if any((folder / name).is_file() for name in known)), None)


def _load_batch(path: Path, classes: int = 10) -> dict[str, Any]:
    content = _load(path)
    data, labels, names = (content.get(key) for key in ("data", "labels", "filenames"))
    if (
        not isinstance(data, np.ndarray)
        or not isinstance(labels, list)
        or not isinstance(names, list)
        or (data.dtype, data.shape) != (np.uint8, (len(labels), 3 * _SIDE * _SIDE))
        or len(names) != len(labels)
    ):
        raise InputError(f"{path} is not a batch of CIFAR-10: data, labels and filenames of as many rows")
    check_labels(path, labels, classes)
    return content


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:
        # A broken pickle raises nearly anything: EOFError, UnpicklingError, IndexError, ValueError.
        raise InputError(f"{path} is truncated or not a pickle of CIFAR-10: {error!r}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a pickle of CIFAR-10: it holds a {type(content).__name__}")
    return content
