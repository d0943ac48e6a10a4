"""The state of one worker's training: built from the seed, restored from a checkpoint, or captured for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from errors import InputError
from pipeline.loader import Loader, make_loader
from preprocess.manifest import read_manifest
from training.checkpoint import (
    MODEL,
    Checkpoint,
    DatasetInfo,
    check_fits,
    describe_data,
    read_checkpoint,
    read_model,
    read_optimizer,
)
from training.config import Config
from training.loop.compile import MeanLoss, make_mean_loss
from training.loop.precision import autocast
from training.models import make_network
from training.optim.optimizer import (
    check_layers,
    load_lr,
    load_optimizer_state,
    lr_by_parameter,
    make_ema,
    make_optimizer,
    optimizer_state,
)
from training.optim.schedules import Schedule
from training.parallel.layout import Layout, gather_full, take_shard


@dataclass
class TrainState:
    """One worker's part of a training in progress."""

    config: Config
    layout: Layout
    autocast: torch.autocast
    network: nn.Module
    """This device's part of the network."""
    ddp_network: nn.Module
    """`network`, wrapped so that backward averages the gradients over the devices that hold the same parameters."""
    mean_loss: MeanLoss
    """The loss of `ddp_network`, compiled if the configuration says so."""
    optimizer: Optimizer
    schedule: Schedule
    train_loader: Loader
    val_loader: Loader
    data: DatasetInfo
    val_samples: int
    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed optimizer steps."""
    ema: AveragedModel | None = None
    """The moving average of the weights, with `optimizer.ema_decay`."""

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate and save: the EMA model if enabled, else the network."""
        return self.network if self.ema is None else self.ema.module


def build_state(config: Config, layout: Layout, num_threads: int, checkpoint: Path | None = None) -> TrainState:
    """Build everything that a training needs on this worker; continue from `checkpoint` if there is one.

    Raises:
        InputError: data, batch or checkpoint do not fit the configuration.
    """
    data = describe_data(config.data)
    torch.manual_seed(config.seed)
    # Drawn completely on every worker, then cut: the weights depend on the seed only, not on the layout.
    initial = make_network(config.architecture(), len(data.classes)).state_dict()
    network = make_network(config.architecture(), len(data.classes), layout.links())
    network.load_state_dict(take_shard(initial, network, layout))
    network.to(device=layout.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_layers(network, config.optimizer, config.epochs)
    optimizer = make_optimizer(network, config.optimizer)
    train_loader, val_loader = _make_loaders(config, layout, num_threads)
    state = TrainState(
        config=config,
        layout=layout,
        autocast=autocast(config.precision, layout.device),
        network=network,
        ddp_network=layout.wrap_for_training(network),
        mean_loss=mean_loss_of(config, layout),
        optimizer=optimizer,
        schedule=Schedule(optimizer, config.optimizer, len(train_loader), config.epochs),
        train_loader=train_loader,
        val_loader=val_loader,
        data=data,
        val_samples=read_manifest(config.data).split("val").samples,
    )
    if checkpoint is not None:
        _restore(state, checkpoint, initial)
    elif config.optimizer.ema_decay:
        state.ema = make_ema(network, config.optimizer.ema_decay)
    return state


def _make_loaders(config: Config, layout: Layout, num_threads: int) -> tuple[Loader, Loader]:
    common: dict[str, Any] = {
        "rank": layout.batch_rank,
        "world_size": layout.num_batch_ranks,
        "device": str(layout.device),
        "crop": config.image_size,
        "seed": config.seed,
        "num_threads": num_threads,
        "units": config.units,
        "mean": config.mean,
        "cache": config.cache,
    }
    per_rank = config.batch_size // layout.num_batch_ranks
    train = make_loader(config.data, "train", per_rank, augmentation=config.augmentation, **common)
    return train, make_loader(config.data, "val", per_rank, **common)


def mean_loss_of(config: Config, layout: Layout) -> MeanLoss:
    """Return the loss function, compiled if the configuration says so."""
    return make_mean_loss(config.compile, layout.device, fullgraph=layout.data_size * layout.model_size == 1)


def _restore(state: TrainState, folder: Path, expected: dict[str, Tensor]) -> None:
    saved = read_checkpoint(folder)
    if saved.data.manifest_sha256 != state.data.manifest_sha256:
        raise InputError(f"{folder} was trained on another data set than {state.config.data}")
    model, saved_optimizer = read_model(folder / MODEL), read_optimizer(folder)
    check_fits(model, expected, str(folder))
    network, layout = state.network, state.layout
    network.load_state_dict(take_shard(model, network, layout))
    if state.config.optimizer.ema_decay:
        state.ema = make_ema(network, state.config.optimizer.ema_decay, saved.step)
    if "weights" in saved_optimizer:
        network.load_state_dict(take_shard(saved_optimizer["weights"], network, layout))
    sharded = {key: take_shard(values, network, layout) for key, values in saved_optimizer["state"].items()}
    load_optimizer_state(network, state.optimizer, sharded)
    load_lr(network, state.optimizer, saved_optimizer["learning_rates"])
    state.schedule.load_state_dict(saved_optimizer["schedule"])
    state.train_loader.epoch = saved.epoch
    state.epoch, state.step = saved.epoch, saved.step


def capture_checkpoint(
    state: TrainState, run_id: str, metrics: dict[str, float]
) -> tuple[Checkpoint, dict[str, Tensor], dict[str, Any]]:
    """Return the arguments of `write_checkpoint`; all peers on the `model` axis must call it together."""
    network, layout = state.network, state.layout
    by_key = optimizer_state(network, state.optimizer)
    optimizer: dict[str, Any] = {
        "state": {key: gather_full(values, network, layout) for key, values in by_key.items()},
        "learning_rates": lr_by_parameter(network, state.optimizer),
        "schedule": state.schedule.state_dict(),
    }
    if state.ema is not None:
        optimizer["weights"] = gather_full(network.state_dict(), network, layout)
    checkpoint = Checkpoint(state.config, state.data, run_id, state.epoch, state.step, metrics)
    return checkpoint, gather_full(state.eval_model.state_dict(), network, layout), optimizer
