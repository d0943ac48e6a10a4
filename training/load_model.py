"""A trained network, chosen on the command line: from an MLflow run, a checkpoint, or a file of weights."""

from __future__ import annotations

import argparse
import base64
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from errors import InputError, check_choice
from object_store import join
from pipeline.views import make_view, read_mean_image
from training.checkpoint import (
    MEAN,
    DatasetInfo,
    checkpoint_name,
    describe_data,
    file_sha256,
    model_path,
    read_checkpoint,
    read_model,
)
from training.class_names import name_classes
from training.config import Config
from training.loop.precision import autocast
from training.models import Architecture, NetworkArchitecture, make_network, to_fully_convolutional
from training.models.state_dict import check_fits
from training.recipes import RECIPES
from training.serving.image_classifier import Preprocessing


@dataclass(frozen=True)
class LoadedModel:
    """A single-device network in eval mode on `device`, with what is needed to feed it."""

    network: nn.Module
    config: Config
    data: DatasetInfo
    mean_image: np.ndarray | None
    """Mean image of the training, float32 short_side,short_side,3 in grey levels; None for the channel mean."""
    device: torch.device
    name: str
    """Where the weights come from, for people."""
    run_id: str | None
    """The MLflow run that was asked for, if it was one."""
    label: str
    """Its name in file names: run and step of a checkpoint, or the stem of a file."""
    weights_sha256: str
    """SHA-256 of the file of its weights, in hex."""

    @property
    def architecture(self) -> NetworkArchitecture:
        """The architecture that was trained."""
        return self.config.architecture()

    @property
    def autocast(self) -> torch.autocast:
        """The number format of its forward pass."""
        return autocast(self.config.precision, self.device)

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from an image file to the input of the network."""
        known, config = self.data, self.config
        view = make_view(
            known.short_side,
            known.color_stats,
            crop=config.image_size,
            crops=1,
            units=config.units,
            mean_image=self.mean_image,
        )
        mean = None if view.mean_crop is None else base64.b64encode(view.mean_crop.astype("<f4").tobytes()).decode()
        return Preprocessing(
            short_side=known.short_side,
            jpeg_quality=known.jpeg_quality,
            apply_exif=known.apply_exif,
            value_range=known.value_range,
            crop=view.crop,
            mean=tuple(view.channel_mean.tolist()),
            mean_image=mean,
            divisor=tuple(view.divisor.tolist()),
        )

    @property
    def classes(self) -> list[dict[str, str]]:
        """`id` and `name` of each class, in the order of the labels."""
        return [asdict(entry) for entry in self.data.classes]


def add_model_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> argparse._MutuallyExclusiveGroup:
    """Add the arguments that choose a trained network, one of --run, --checkpoint, --weights; return their group.

    With `several`, --run and --checkpoint may be repeated, for `load_models`.
    """
    action, again = ("append", "; again for each network of an ensemble") if several else ("store", "")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--run", action=action, metavar="RUN_ID", help=f"an MLflow run, with --which of its checkpoints{again}"
    )
    choice.add_argument("--checkpoint", action=action, type=Path, metavar="PATH", help=f"a checkpoint folder{again}")
    choice.add_argument("--weights", type=Path, metavar="FILE", help="a state dict, with --recipe")
    parser.add_argument("--which", choices=("last", "best"), default=None, help="with --run (default: last)")
    parser.add_argument("--recipe", metavar="NAME", help="with --weights: the recipe that says what network it is")
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="lines of a class id and its name (default: the names in the data set, and those of ImageNet's wnids)",
    )
    return choice


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that chooses the device of the network."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def add_staging_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where shards of an object store are copied to; see `Staging`."""
    parser.add_argument("--staging", metavar="DIR", help="folder for shards of an object store (default: user's cache)")
    parser.add_argument("--staging-bytes", type=int, metavar="N", help="of all shards there (default: the free disk)")


def load_model(choice: argparse.Namespace, project: Path, data: str | None) -> LoadedModel:
    """Return the network that the arguments of `add_model_arguments` and `add_device_argument` name.

    `project` is the folder of the default MLflow store; the shards in `data` give the classes and colours of
    `--weights`.

    Raises:
        InputError: there is no such run, checkpoint, file, recipe or device, or they do not fit together.
    """
    trained = _load_chosen(choice, project, data)
    return replace(trained, data=replace(trained.data, classes=name_classes(trained.data.classes, choice.class_names)))


def load_models(choice: argparse.Namespace, project: Path, data: str | None) -> tuple[LoadedModel, ...]:
    """Return the networks that the arguments of `add_model_arguments(several=True)` name, as `load_model` does."""
    for option in ("run", "checkpoint"):
        if named := getattr(choice, option):
            single = [argparse.Namespace(**{**vars(choice), option: name}) for name in named]
            return tuple(load_model(one, project, data) for one in single)
    return (load_model(choice, project, data),)


def _load_chosen(choice: argparse.Namespace, project: Path, data: str | None) -> LoadedModel:
    if choice.which and not choice.run:
        raise InputError(f"--which is {choice.which}: it needs --run; leave it out or use --run RUN_ID")
    if (choice.recipe is None) != (choice.weights is None):
        raise InputError("--weights FILE and --recipe NAME go together: the file does not say what network it is")
    device = _device(choice.device)
    if choice.weights is not None:
        if data is None:
            raise InputError("--weights needs --data DIR: the classes and the colour statistics are read there")
        check_choice("--recipe", choice.recipe, RECIPES)
        config, known = RECIPES[choice.recipe](), describe_data(data)
        if known.short_side != config.short_side:
            raise InputError(
                f"--recipe is {choice.recipe}: it is for a short side of {config.short_side} pixels, and that of "
                f"{data} is {known.short_side}; use the recipe that the weights were trained with, and shards for it"
            )
        mean = join(data, known.color_stats.mean_image)
        return _load(choice.weights, mean, config, known, device, str(choice.weights), None, choice.weights.stem)
    if choice.checkpoint is not None:
        return load_checkpoint(choice.checkpoint, device, str(choice.checkpoint))
    from training import tracking  # MLflow takes seconds to import: weights and checkpoints do without

    client, which = tracking.open_client(tracking.tracking_uri(project)), choice.which or "last"
    with tempfile.TemporaryDirectory() as folder:
        fetched = tracking.fetch_checkpoint(client, choice.run, which, Path(folder))
        return load_checkpoint(fetched, device, f"run {choice.run}, {which} checkpoint", choice.run)


def load_checkpoint(folder: Path, device: torch.device, name: str, run_id: str | None = None) -> LoadedModel:
    """Return the network of a checkpoint folder, which error messages call `name`.

    Raises:
        InputError: the checkpoint is incomplete or damaged.
    """
    saved = read_checkpoint(folder)
    label = f"{run_id or saved.run_id}-{checkpoint_name(saved.step)}"
    return _load(model_path(folder), folder / MEAN, saved.config, saved.data, device, name, run_id, label)


def make_dense(trained: LoadedModel) -> LoadedModel:
    """Return the same network for the complete central square: fc6 to fc8 are convolutions, their map is averaged.

    At 256 pixels and crops of 224 the map of the networks of 2012 has 2x2 positions, 32 pixels apart.

    Raises:
        InputError: it is not one of the AlexNet family.
    """
    known, config = trained.architecture, replace(trained.config, crop=trained.data.short_side)
    if not isinstance(known, Architecture):
        raise InputError(
            f"--dense needs a network of the AlexNet family, not {config.network.name} of {trained.name}; leave it out"
        )
    side = known.last_side()
    dense = replace(known, image_size=config.image_size, fully_convolutional=True, hybrid=False, map_side=side)
    network = make_network(dense, len(trained.data.classes))
    network.load_state_dict(to_fully_convolutional(trained.network.state_dict(), side))
    network.to(device=trained.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(trained, network=network.eval(), config=config, name=f"{trained.name}, dense")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}; use auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (gpus := torch.cuda.device_count()):
        raise InputError(f"--device is {name!r}: torch finds {gpus} GPUs on this machine; use one of them or cpu")
    return device


def _load(
    weights: Path,
    mean: Path | str,
    config: Config,
    data: DatasetInfo,
    device: torch.device,
    name: str,
    run_id: str | None,
    label: str,
) -> LoadedModel:
    network = make_network(config.architecture(), len(data.classes))
    state = read_model(weights)
    check_fits(state, network.state_dict(), name)
    network.load_state_dict(state)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean_image = read_mean_image(mean, data.short_side) if config.mean == "image" else None
    data = replace(data, classes=name_classes(data.classes))
    return LoadedModel(network.eval(), config, data, mean_image, device, name, run_id, label, file_sha256(weights))
