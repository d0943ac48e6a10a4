"""Checkpoints: folders that hold a complete training, independent of the number of devices.

checkpoint.json        the description, with the SHA-256 of the other files
model.safetensors      single-device state dict for evaluation: the EMA weights if there are any; `--weights` takes it
training.safetensors   optimizer state, with an EMA the raw weights, within an epoch the state of the random generators
mean.npy               mean image that was subtracted in training, if it was not the channel mean

Schema 2 had `model.pt` and no checkpoints within an epoch: it can be evaluated, but not continued.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import pickle
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from atomic_files import atomic_write, flush
from errors import InputError
from object_store import join, read_file
from preprocess.manifest import ClassEntry, ColorStats, manifest_digest, read_manifest
from training.config import Config
from training.models.state_dict import unwrap_state_dict
from typed_json import read_versioned_json, to_json_values

SCHEMA = 3
PAGE, MODEL, TRAINING, MEAN = "checkpoint.json", "model.safetensors", "training.safetensors", "mean.npy"
_MODEL_OF_SCHEMA_2 = "model.pt"


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
    value_range: tuple[float, float] | None = None
    """The values that became black and white in images of one channel of more than 8 bits."""


def describe_data(folder: str) -> DatasetInfo:
    """Return the facts about the data set in `folder`; raise `InputError` if it is incomplete."""
    manifest = read_manifest(folder)
    shared = [field.name for field in fields(DatasetInfo) if field.name != "manifest_sha256"]
    return DatasetInfo(manifest_sha256=manifest_digest(folder), **{name: getattr(manifest, name) for name in shared})


@dataclass(frozen=True)
class Continuation:
    """The numbers, next to the tensors, that a training needs to go on as if it had not stopped."""

    learning_rates: dict[str, float]
    """Present learning rate by parameter name."""
    schedule: dict[str, Any]
    loader: dict[str, Any]
    """State of the train loader."""
    loss_sums: list[float]
    """Sum of the losses since the last point of the curves, of each share of the batch."""
    image_sums: list[int]
    """Number of images in these."""
    skipped: int = 0
    """Training samples left out in the epoch so far."""
    loss_scale: dict[str, Any] = field(default_factory=dict)
    """State of the scale of the loss, in float16."""


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
    """Validation metrics after this epoch; none within an epoch."""
    batch: int = 0
    """Steps of the next epoch that are completed."""
    continuation: Continuation | None = None
    """None in schema 2."""


@dataclass(frozen=True)
class Snapshot:
    """A complete training in the memory of the host."""

    description: Checkpoint
    model: dict[str, Tensor]
    """The weights to evaluate, by parameter name."""
    training: dict[str, dict[str, Tensor]]
    """Everything else, by kind and name: `optimizer.KEY` and `weights` by parameter name, `random` by device type."""


@dataclass(frozen=True, kw_only=True)
class _Page(Checkpoint):
    """`checkpoint.json`: the description, its schema, and the digests of the other files."""

    schema: int
    sha256: dict[str, str]


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of the checkpoint after so many optimizer steps."""
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint into an empty folder, its description last, all of it flushed to disk.

    Raises:
        OSError: a file cannot be written.
    """
    description = snapshot.description
    tensors = {f"{kind}/{name}": tensor for kind, group in snapshot.training.items() for name, tensor in group.items()}
    for file, content in ((MODEL, snapshot.model), (TRAINING, tensors)):
        try:
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in content.items()}, folder / file)
        except SafetensorError as error:  # of the disk: the content is our own
            raise OSError(f"{folder / file} cannot be written: {error}") from error
    files = [MODEL, TRAINING]
    if description.config.mean == "image":
        mean = join(description.config.data, description.data.color_stats.mean_image)
        (folder / MEAN).write_bytes(read_file(mean))
        files.append(MEAN)
    for name in files:
        flush(folder / name)
    digests = {name: file_sha256(folder / name) for name in files}
    page = {"schema": SCHEMA, **to_json_values(description), "sha256": digests}
    atomic_write(folder / PAGE, f"{json.dumps(page, indent=1)}\n".encode())


def read_description(folder: Path) -> _Page:
    """Return the description of a checkpoint without a look at its other files.

    Raises:
        InputError: there is none, it cannot be read, or it has another schema.
    """
    if not (folder / PAGE).is_file():
        raise InputError(f"{folder} is not a checkpoint: it has no {PAGE}; use a folder that has one")
    return read_versioned_json(_Page, folder / PAGE, 2, SCHEMA)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the description of a checkpoint; raise `InputError` for another schema, or missing or damaged files."""
    page = read_description(folder)
    for name, digest in page.sha256.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise InputError(f"{folder / name} is missing or damaged: the checkpoint is incomplete; use another one")
    return page


def model_path(folder: Path) -> Path:
    """Return the file of a checkpoint that holds its model."""
    return folder / (MODEL if (folder / MODEL).is_file() else _MODEL_OF_SCHEMA_2)


def read_model(path: Path) -> dict[str, Tensor]:
    """Return the single-device state dict in a file of torch or safetensors, on the CPU; see `unwrap_state_dict`.

    Raises:
        InputError: the file does not exist, cannot be read without running its code, or holds no state dict.
    """
    try:
        content = _read_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; use a file of safetensors, or a state dict of torch.save") from error
    except Exception as error:  # there is no common base for what a foreign file can cause
        raise InputError(
            f"{path} cannot be read as weights: {_describe_unreadable(path, error)}; "
            "use a file of safetensors, or a state dict of torch.save"
        ) from error
    return unwrap_state_dict(content, str(path))


def _read_file(path: Path) -> object:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    # Next to the weights, timm and torchvision's references save their command line as a namespace, which is only data.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about archives of TorchScript, which are refused
        return torch.load(path, map_location="cpu", weights_only=True)


def _describe_unreadable(path: Path, error: Exception) -> str:
    unsafe: list[str] = []
    if isinstance(error, pickle.UnpicklingError):
        with contextlib.suppress(ValueError, RuntimeError):  # not in a format that can be searched
            unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return f"it holds {', '.join(unsafe)}, which can run code" if unsafe else type(error).__name__


def read_training(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of `Snapshot.training`, on the CPU."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in safetensors.torch.load_file(folder / TRAINING).items():
        kind, _, key = name.partition("/")
        groups.setdefault(kind, {})[key] = tensor
    return groups


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
