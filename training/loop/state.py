"""The state of one worker's training: built from the seed, restored from a checkpoint, or captured for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from errors import InputError
from pipeline.loader import Loader, make_loader
from preprocess.manifest import read_manifest
from training.checkpoint import (
    MODEL,
    Checkpoint,
    Continuation,
    DatasetInfo,
    Snapshot,
    describe_data,
    read_checkpoint,
    read_model,
    read_training,
)
from training.config import Config
from training.loop.compile import MeanLoss, make_mean_loss
from training.loop.meter import Meter
from training.loop.precision import NumberFormat, agree_on_format, autocast, make_scaler
from training.loop.request import TakeRequest
from training.loop.step import balanced_class_weights
from training.models import make_network
from training.models.state_dict import check_fits
from training.optim.optimizer import (
    check_layers,
    load_lr,
    load_optimizer_state,
    lr_by_parameter,
    make_ema,
    make_optimizer,
    optimizer_state,
    start_momentum,
)
from training.optim.schedules import Schedule
from training.parallel.layout import Layout, gather_full, take_shard

_OPTIMIZER = "optimizer."


@dataclass
class TrainState:
    """One worker's part of a training in progress."""

    config: Config
    layout: Layout
    number_format: NumberFormat
    """Of the forward and backward passes."""
    format_reason: str
    """Why it was chosen; empty where the configuration's `precision` names it."""
    autocast: torch.autocast
    scaler: GradScaler
    """The scale of the loss, for float16."""
    network: nn.Module
    """This device's part of the network."""
    ddp_network: nn.Module
    """`network`, wrapped so that backward averages the gradients over the devices that hold the same parameters."""
    mean_loss: MeanLoss
    """The loss of `ddp_network`, compiled if the configuration says so."""
    class_weights: Tensor | None
    """Weights of the loss, float32 classes on the device; None: all classes count the same."""
    optimizer: Optimizer
    schedule: Schedule
    train_loader: Loader
    val_loader: Loader | None
    """None: the data set has no val samples, and nothing is validated."""
    data: DatasetInfo
    val_samples: int
    meter: Meter
    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed optimizer steps."""
    batch: int = 0
    """Steps of the next epoch that are completed."""
    skipped: int = 0
    """Training samples of the next epoch that this device has left out."""
    batches_seen: int = 0
    """Batches that this process has trained on or validated, a sign of progress."""
    random: dict[str, Tensor] | None = None
    """Restored states of this device's random generators, until the training takes them up."""
    take_request: TakeRequest | None = None
    """Requests to this process; all processes follow the highest. None, on all of them: nobody can ask for anything."""
    ema: AveragedModel | None = None
    """The moving average of the weights, with `optimizer.ema_decay`."""

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate and save: the EMA model if enabled, else the network."""
        return self.network if self.ema is None else self.ema.module


def build_state(
    config: Config,
    layout: Layout,
    num_threads: int,
    checkpoint: Path | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> TrainState:
    """Build everything that a training needs on this worker; continue from `checkpoint` if there is one.

    `weights`, by parameter name, replace those that the seed gives; a layer that they lack is drawn from the seed.

    Raises:
        InputError: data, batch or checkpoint do not fit the configuration.
    """
    data = describe_data(config.data)
    torch.manual_seed(config.seed)
    # Drawn completely on every worker, then cut: the weights depend on the seed only, not on the layout.
    initial = {**make_network(config.architecture(), len(data.classes)).state_dict(), **(weights or {})}
    network = make_network(config.architecture(), len(data.classes), layout.links())
    network.load_state_dict(take_shard(initial, network, layout))
    network.to(device=layout.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_layers(network, config.optimizer, config.epochs)
    optimizer = make_optimizer(network, config.optimizer)
    train_loader, val_loader = _make_loaders(config, layout, num_threads)
    number_format, reason = agree_on_format(config.precision, layout)
    state = TrainState(
        config=config,
        layout=layout,
        number_format=number_format,
        format_reason=reason,
        autocast=autocast(number_format, layout.device),
        scaler=make_scaler(number_format, layout),
        network=network,
        ddp_network=layout.wrap_for_training(network, config.image_size),
        mean_loss=mean_loss_of(config, layout),
        class_weights=_class_weights(config, layout, train_loader),
        optimizer=optimizer,
        schedule=Schedule(optimizer, config.optimizer, len(train_loader), config.epochs),
        train_loader=train_loader,
        val_loader=val_loader,
        data=data,
        val_samples=read_manifest(config.data).samples("val"),
        meter=Meter(layout),
    )
    if state.scaler.is_enabled():
        start_momentum(optimizer)
    if checkpoint is not None:
        _restore(state, checkpoint, initial)
    elif config.optimizer.ema_decay:
        # A new average begins with the weights after the first step; one of trained weights begins with these.
        state.ema = make_ema(network, config.optimizer.ema_decay, 0 if weights is None else 1)
    return state


def _make_loaders(config: Config, layout: Layout, num_threads: int) -> tuple[Loader, Loader | None]:
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
        "on_error": config.on_bad_sample,
        "staging": config.local_staging(),
    }
    per_rank = config.batch_size // layout.num_batch_ranks
    train = make_loader(
        config.data, "train", per_rank, augmentation=config.augmentation, sampling=config.sampling, **common
    )
    has_val = read_manifest(config.data).samples("val") > 0
    return train, make_loader(config.data, "val", per_rank, **common) if has_val else None


def _class_weights(config: Config, layout: Layout, train_loader: Loader) -> Tensor | None:
    if config.class_weights == "none":
        return None
    return balanced_class_weights(train_loader.class_counts()).to(layout.device)


def mean_loss_of(config: Config, layout: Layout) -> MeanLoss:
    """Return the loss function, compiled if the configuration says so."""
    return make_mean_loss(config.compile, layout.device, fullgraph=layout.num_processes == 1)


def _restore(state: TrainState, folder: Path, expected: dict[str, Tensor]) -> None:
    saved = read_checkpoint(folder)
    if saved.data.manifest_sha256 != state.data.manifest_sha256:
        raise InputError(f"{folder} was trained on another data set than {state.config.data}")
    if saved.continuation is None:
        raise InputError(f"{folder} is of an earlier version: it can be evaluated, but not continued")
    model, tensors = read_model(folder / MODEL), read_training(folder)
    check_fits(model, expected, str(folder))
    network, layout = state.network, state.layout
    network.load_state_dict(take_shard(model, network, layout))
    if state.config.optimizer.ema_decay:
        state.ema = make_ema(network, state.config.optimizer.ema_decay, saved.step)
    if "weights" in tensors:
        network.load_state_dict(take_shard(tensors["weights"], network, layout))
    sharded = {
        kind.removeprefix(_OPTIMIZER): take_shard(group, network, layout)
        for kind, group in tensors.items()
        if kind.startswith(_OPTIMIZER)
    }
    load_optimizer_state(network, state.optimizer, sharded)
    load_lr(network, state.optimizer, saved.continuation.learning_rates)
    state.schedule.load_state_dict(saved.continuation.schedule)
    if saved.continuation.loss_scale:
        state.scaler.load_state_dict(saved.continuation.loss_scale)
    state.train_loader.load_state_dict(saved.continuation.loader)
    state.epoch, state.batch, state.step = saved.epoch, saved.batch, saved.step
    _restore_sums(state, saved.continuation)
    random = {
        kind: states[layout.global_rank]
        for kind, states in tensors.get("random", {}).items()
        if len(states) == layout.num_processes
    }
    state.random = random or None


def _restore_sums(state: TrainState, saved: Continuation) -> None:
    rank, sums = state.layout.batch_rank, list(zip(saved.loss_sums, saved.image_sums, strict=True))
    if len(sums) != state.layout.num_batch_ranks:  # of another number of devices: one of them counts for all
        sums = [(sum(saved.loss_sums), sum(saved.image_sums)), *[(0.0, 0)] * (state.layout.num_batch_ranks - 1)]
    state.meter.restore(*sums[rank])
    state.skipped = saved.skipped if rank == 0 else 0


def capture_checkpoint(state: TrainState, run_id: str, metrics: dict[str, float]) -> Snapshot:
    """Return a copy of the training in the memory of the host; all processes must call it together."""
    network, layout = state.network, state.layout
    training = {
        f"{_OPTIMIZER}{key}": gather_full(values, network, layout)
        for key, values in optimizer_state(network, state.optimizer).items()
    }
    if state.ema is not None:
        training["weights"] = gather_full(network.state_dict(), network, layout)
    own = random_states(layout.device) if state.batch else {}, (*state.meter.sums(), state.skipped)
    randoms, counts = zip(*layout.gather_objects(own), strict=True)
    training["random"] = {kind: torch.stack([states[kind] for states in randoms]) for kind in randoms[0]}
    shares = counts if layout.hybrid else counts[:: layout.model_size]
    continuation = Continuation(
        learning_rates=lr_by_parameter(network, state.optimizer),
        schedule=state.schedule.state_dict(),
        loss_scale=state.scaler.state_dict(),
        loader={**state.train_loader.state_dict(), "epoch": state.epoch, "batch": state.batch},
        loss_sums=[loss for loss, _, _ in shares],
        image_sums=[images for _, images, _ in shares],
        skipped=sum(skipped for _, _, skipped in shares),
    )
    description = Checkpoint(
        state.config, state.data, run_id, state.epoch, state.step, metrics, state.batch, continuation
    )
    return Snapshot(description, gather_full(state.eval_model.state_dict(), network, layout), training)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that dropout on `device` draws from, by device type: uint8."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(device: torch.device, states: dict[str, Tensor]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["cpu"].clone())  # a row of a larger tensor has an offset, which torch refuses
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].clone(), device)
