"""Checkpoints: folders that hold a whole training, independent of how many devices it ran on.

checkpoint.json   what it is, with the SHA-256 of the other files: a copy that was cut short is found out
model.pt          the single-device state dict that was validated: of the moving average, where one is kept;
                  `--weights` takes this file too
optimizer.pt      velocities and learning rates by parameter name, the schedule, and beside an average the weights
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import InputError
from pipeline.augment import read_mean_image
from preprocess.manifest import ClassEntry, ColorStats, color_stats_from_json, manifest_digest, read_manifest
from training.config import Config, config_from_dict

SCHEMA = 1
PAGE, MODEL, OPTIMIZER, MEAN = "checkpoint.json", "model.pt", "optimizer.pt", "mean.npy"


@dataclass(frozen=True)
class TrainedOn:
    """What using a network on new images takes to know of its data set."""

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
    """Whether its images were turned as their EXIF orientation says."""


def describe_data(folder: str) -> TrainedOn:
    """Return what a checkpoint keeps of the data set in `folder`; `InputError` if it is not a whole one."""
    manifest = read_manifest(folder)
    return TrainedOn(
        name=manifest.name,
        manifest_sha256=manifest_digest(folder),
        short_side=manifest.short_side,
        jpeg_quality=manifest.jpeg_quality,
        classes=manifest.classes,
        color_stats=manifest.color_stats,
        apply_exif=manifest.apply_exif,
    )


@dataclass(frozen=True)
class Checkpoint:
    """The description of a checkpoint, as `checkpoint.json` holds it."""

    config: Config
    data: TrainedOn
    run_id: str
    """The MLflow run that it belongs to."""
    epoch: int
    """Epochs that are done."""
    step: int
    """Optimiser steps that are done."""
    metrics: dict[str, float]
    """Validation metrics after this epoch."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint, model: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
    """Write a checkpoint into an empty folder, its description last."""
    torch.save(model, folder / MODEL)
    torch.save(optimizer, folder / OPTIMIZER)
    files = [MODEL, OPTIMIZER]
    if checkpoint.config.mean == "image":
        shutil.copyfile(Path(checkpoint.config.data, checkpoint.data.color_stats.mean_image), folder / MEAN)
        files.append(MEAN)
    page = {
        "schema": SCHEMA,
        **dataclasses.asdict(checkpoint),
        "sha256": {name: _sha256(folder / name) for name in files},
    }
    partial = folder / f".{PAGE}.partial"
    partial.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / PAGE)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the description of a checkpoint after checking that its files are whole.

    Raises:
        InputError: not a checkpoint, another schema, or a file that is missing or damaged.
    """
    page = _read_page(folder)
    for name, digest in page.pop("sha256").items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise InputError(f"{folder / name} is missing or damaged: the checkpoint is not whole")
    del page["schema"]
    try:
        page["config"] = config_from_dict(page["config"])
        data = page["data"]
        data["classes"] = tuple(ClassEntry(**entry) for entry in data["classes"])
        data["color_stats"] = color_stats_from_json(data["color_stats"])
        return Checkpoint(**{**page, "data": TrainedOn(**data)})
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / PAGE} is not a checkpoint of this version: {error!r}") from error


def read_model(path: Path) -> dict[str, Tensor]:
    """Return the single-device state dict in a file (`model.pt`, or anyone's weights) on the CPU.

    Raises:
        InputError: no such file, or not a state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it would be a state dict that torch.save wrote") from error
    except Exception as error:  # torch.load has no common base for what a foreign file can cause
        raise InputError(f"{path} cannot be read as weights: {type(error).__name__}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} is not a state dict: it must map parameter names to tensors")
    return state


def read_mean(folder: Path, checkpoint: Checkpoint) -> np.ndarray | None:
    """Return the mean image that the network was trained with, None where it was trained with the channel mean."""
    if checkpoint.config.mean == "channel":
        return None
    return read_mean_image(folder / MEAN, checkpoint.data.short_side)


def read_optimizer(folder: Path) -> dict[str, Any]:
    """Return what `write_checkpoint` was given as `optimizer`, on the CPU."""
    state: dict[str, Any] = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    return state


def check_fits(model: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raise `InputError` unless the tensors of `model` have the names and shapes of `wanted`."""
    for name in [*wanted, *model]:
        found = tuple(model[name].shape) if name in model else "nothing"
        expected = tuple(wanted[name].shape) if name in wanted else "nothing"
        if found != expected:
            raise InputError(f"{source} is of another network: it has {found} as {name}, this one {expected}")


def _read_page(folder: Path) -> dict[str, Any]:
    path = folder / PAGE
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a checkpoint: it has no {PAGE}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(page, dict) or page.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a checkpoint of schema {SCHEMA}")
    return page


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
