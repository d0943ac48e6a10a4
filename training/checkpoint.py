"""Checkpoints: folders that hold a complete training, independent of the number of devices.

checkpoint.json   the description, with the SHA-256 of the other files
model.pt          single-device state dict that was validated: the EMA weights if there are any; `--weights` takes it
optimizer.pt      optimizer state and learning rates by parameter name, the schedule, and with an EMA the raw weights
mean.npy          mean image that was subtracted in training, if it was not the channel mean
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atomic_files import atomic_write
from errors import InputError
from preprocess.manifest import ClassEntry, ColorStats, manifest_digest, read_manifest
from training.config import Config
from typed_json import read_versioned_json, to_json_values

SCHEMA = 2
PAGE, MODEL, OPTIMIZER, MEAN = "checkpoint.json", "model.pt", "optimizer.pt", "mean.npy"


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set that its network needs for new images."""

    name: str
    manifest_sha256: str
    short_side: int
    """In pixels."""
    jpeg_quality: int
    classes: tuple[ClassEntry, ...]
    """In the order of the labels."""
    color_stats: ColorStats
    """Colour statistics of the train split, in 0-255 units."""
    apply_exif: bool = False
    """Images were turned as their EXIF orientation says."""


def describe_data(folder: str) -> DatasetInfo:
    """Return the facts about the data set in `folder`; raise `InputError` if it is incomplete."""
    manifest = read_manifest(folder)
    shared = [field.name for field in fields(DatasetInfo) if field.name != "manifest_sha256"]
    return DatasetInfo(manifest_sha256=manifest_digest(folder), **{name: getattr(manifest, name) for name in shared})


@dataclass(frozen=True)
class Checkpoint:
    """The description of a checkpoint, as `checkpoint.json` holds it."""

    config: Config
    data: DatasetInfo
    run_id: str
    """Id of the MLflow run."""
    epoch: int
    """Completed epochs."""
    step: int
    """Completed optimizer steps."""
    metrics: dict[str, float]
    """Validation metrics after this epoch."""


@dataclass(frozen=True)
class _Page(Checkpoint):
    """`checkpoint.json`: the description, its schema, and the digests of the other files."""

    schema: int
    sha256: dict[str, str]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, model: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
    """Write a checkpoint into an empty folder, its description last."""
    torch.save(model, folder / MODEL)
    torch.save(optimizer, folder / OPTIMIZER)
    files = [MODEL, OPTIMIZER]
    if checkpoint.config.mean == "image":
        shutil.copyfile(Path(checkpoint.config.data, checkpoint.data.color_stats.mean_image), folder / MEAN)
        files.append(MEAN)
    digests = {name: _sha256(folder / name) for name in files}
    page = {"schema": SCHEMA, **to_json_values(checkpoint), "sha256": digests}
    atomic_write(folder / PAGE, f"{json.dumps(page, indent=1)}\n".encode())


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the description of a checkpoint; raise `InputError` for another schema, or missing or damaged files."""
    if not (folder / PAGE).is_file():
        raise InputError(f"{folder} is not a checkpoint: it has no {PAGE}; use a folder that has one")
    page = read_versioned_json(_Page, folder / PAGE, SCHEMA)
    for name, digest in page.sha256.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise InputError(f"{folder / name} is missing or damaged: the checkpoint is incomplete; use another one")
    return page


def read_model(path: Path) -> dict[str, Tensor]:
    """Return the single-device state dict in a file on the CPU; raise `InputError` if it is missing or is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it would be a state dict that torch.save wrote") from error
    except Exception as error:  # torch.load has no common base for what a foreign file can cause
        raise InputError(f"{path} cannot be read as weights: {type(error).__name__}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} is not a state dict: it must map parameter names to tensors")
    return state


def read_optimizer(folder: Path) -> dict[str, Any]:
    """Return the `optimizer` argument of `write_checkpoint`, on the CPU."""
    state: dict[str, Any] = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    return state


def check_fits(model: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raise `InputError` unless the tensors of `model` have the names and shapes of `wanted`."""
    for name in [*wanted, *model]:
        found = tuple(model[name].shape) if name in model else "nothing"
        expected = tuple(wanted[name].shape) if name in wanted else "nothing"
        if found != expected:
            raise InputError(f"{source} is of another network: {name} is {found} instead of {expected}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
