"""The training loop, as every worker runs it. It knows neither Ray nor MLflow: `training.launch` brings those.

open_session   data, network, optimiser and schedule, from the seed or from a checkpoint
train          epochs of steps; after each epoch a validation and a snapshot
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

from errors import InputError
from pipeline.loader import Loader, make_loader
from preprocess.manifest import read_manifest
from training.checkpoint import MODEL as MODEL_FILE
from training.checkpoint import (
    Checkpoint,
    TrainedOn,
    check_fits,
    describe_data,
    read_checkpoint,
    read_model,
    read_optimizer,
)
from training.config import Config
from training.loop.compile import MeanLoss, make_mean_loss
from training.loop.precision import autocast, resolve_precision
from training.loop.step import TOP_K, log_probabilities, score, train_step
from training.models import build
from training.optim.ema import make_average
from training.optim.optimizer import (
    check_layers,
    freeze_layers,
    load_momentum,
    load_rates,
    make_optimizer,
    momentum_by_name,
    rates_by_name,
)
from training.optim.schedules import Schedule
from training.parallel.layout import Layout, gather_full, take_shard

Log = Callable[[dict[str, float], int], None]
"""Takes metrics by name and the global step they belong to."""


class DivergenceError(RuntimeError):
    """The loss is no longer a number; trying again from the same state would end the same way."""


@dataclass
class Session:
    """One worker's part of a training in progress."""

    config: Config
    layout: Layout
    autocast: torch.autocast
    network: nn.Module
    """This device's part of the network."""
    replica: nn.Module
    """`network`, wrapped so that gradients are averaged over the devices that hold the same parameters."""
    mean_loss: MeanLoss
    """Of `replica`; compiled, where the configuration says so."""
    optimizer: SGD
    schedule: Schedule
    train_loader: Loader
    val_loader: Loader
    data: TrainedOn
    val_samples: int
    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Optimiser steps that are done."""
    average: AveragedModel | None = None
    """The moving average of `network`, with `optimizer.ema`."""

    @property
    def result(self) -> nn.Module:
        """What this training is about: the average where there is one, else the network itself."""
        return self.network if self.average is None else self.average.module


def open_session(config: Config, layout: Layout, num_threads: int, checkpoint: Path | None = None) -> Session:
    """Build everything that a training needs on this worker; continue from `checkpoint` if there is one.

    Raises:
        InputError: data, batch or checkpoint do not fit the configuration.
    """
    data = describe_data(config.data)
    share = {"rank": layout.position, "world_size": layout.positions, "device": str(layout.device)}
    common: dict[str, Any] = {**share, "crop": config.image_size, "seed": config.seed, "num_threads": num_threads}
    common |= {"units": config.units, "mean": config.mean, "cache": config.cache}
    per_device = config.batch_size // layout.positions
    classes = len(data.classes)
    torch.manual_seed(config.seed)
    # Drawn whole on every worker, then cut: the weights depend on the seed alone, not on the layout.
    initial = build(config.network.name, classes, **config.switches()).state_dict()
    network = build(config.network.name, classes, links=layout.links(), **config.switches())
    network.load_state_dict(take_shard(initial, network, layout))
    network.to(device=layout.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_layers(network, config.optimizer, config.epochs)
    optimizer = make_optimizer(network, config.optimizer)
    train_loader = make_loader(config.data, "train", per_device, augmentation=config.augmentation, **common)
    session = Session(
        config=config,
        layout=layout,
        autocast=autocast(resolve_precision(config.precision, layout.device), layout.device),
        network=network,
        replica=layout.replicate(network),
        mean_loss=_mean_loss(config, layout),
        optimizer=optimizer,
        schedule=Schedule(optimizer, config.optimizer, len(train_loader), config.epochs),
        train_loader=train_loader,
        val_loader=make_loader(config.data, "val", per_device, **common),
        data=data,
        val_samples=read_manifest(config.data).split("val").samples,
    )
    if checkpoint is not None:
        _restore(session, checkpoint, initial)
    elif config.optimizer.ema:
        session.average = make_average(network, config.optimizer.ema)
    return session


def _mean_loss(config: Config, layout: Layout) -> MeanLoss:
    return make_mean_loss(config.compile, layout.device, whole=layout.data_size * layout.model_size == 1)


def _restore(session: Session, folder: Path, wanted: dict[str, Tensor]) -> None:
    done = read_checkpoint(folder)
    if done.data.manifest_sha256 != session.data.manifest_sha256:
        raise InputError(f"{folder} was trained on another data set than {session.config.data}")
    model, state = read_model(folder / MODEL_FILE), read_optimizer(folder)
    check_fits(model, wanted, str(folder))
    network, layout = session.network, session.layout
    network.load_state_dict(take_shard(model, network, layout))
    if session.config.optimizer.ema:
        session.average = make_average(network, session.config.optimizer.ema, done.step)
    if "weights" in state:
        network.load_state_dict(take_shard(state["weights"], network, layout))
    load_momentum(network, session.optimizer, take_shard(state["momentum"], network, layout))
    load_rates(network, session.optimizer, state["learning_rates"])
    session.schedule.load_state_dict(state["schedule"])
    session.train_loader.epoch = done.epoch
    session.epoch, session.step = done.epoch, done.step


def train(session: Session, log: Log, save: Callable[[Session, dict[str, float]], None]) -> None:
    """Train to the configured number of epochs; after each, validate, log and save."""
    while session.epoch < session.config.epochs:
        # Own dropout masks on every device in every epoch, also after a restart at its beginning.
        entropy = (session.config.seed, session.epoch, session.layout.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        _freeze(session)
        train_epoch(session, log)
        metrics = validate(session)
        session.schedule.after_epoch(1 - metrics["val/top1"])
        session.epoch += 1
        log(metrics, session.step)
        save(session, metrics)


def _freeze(session: Session) -> None:
    if not freeze_layers(session.network, session.config.optimizer, session.epoch):
        return
    # DistributedDataParallel waits for the gradient of all that had one when it was made, and its hooks stay as long
    # as it does. The epoch is the same on every worker, so all of them come here together.
    session.replica = session.network
    session.mean_loss = _mean_loss(session.config, session.layout)
    gc.collect()
    session.replica = session.layout.replicate(session.network)


def train_epoch(session: Session, log: Log) -> None:
    """Take one optimiser step on every batch of the next epoch."""
    session.replica.train()
    meter = Meter(session.layout)
    for images, labels in meter.watch(session.train_loader):
        learning_rate = session.schedule.learning_rate
        loss = train_step(
            session.replica,
            session.optimizer,
            images,
            labels,
            session.autocast,
            session.config.label_smoothing,
            session.config.micro_batches,
            session.mean_loss,
        )
        if session.average is not None:
            session.average.update_parameters(session.network)
        meter.add(loss, len(labels))
        session.schedule.after_step()
        session.step += 1
        if session.step % session.config.log_every == 0:
            log({"train/lr": learning_rate, **meter.read()}, session.step)


def validate(session: Session) -> dict[str, float]:
    """Return loss, top-1 and top-5 accuracy (0 to 1) over the val split, each sample counted once."""
    network, layout, config = session.result.eval(), session.layout, session.config
    sums = torch.zeros(4, dtype=torch.float64, device=layout.device)
    shape = (config.batch_size // layout.positions, 3, config.image_size, config.image_size)
    for images, labels in layout.in_step(session.val_loader, shape):
        sums += score(log_probabilities(network, images, session.autocast)[: len(labels)], labels)
    loss, top1, top5, samples = layout.sum_over_positions(sums).tolist()
    if samples != session.val_samples:
        raise RuntimeError(f"validation saw {samples:.0f} samples where the manifest has {session.val_samples}")
    metrics = {"val/loss": loss / samples, "val/top1": top1 / samples}
    return {**metrics, "val/top5": top5 / samples} if len(session.data.classes) >= TOP_K else metrics


def snapshot(
    session: Session, run_id: str, metrics: dict[str, float]
) -> tuple[Checkpoint, dict[str, Tensor], dict[str, Any]]:
    """Return what `write_checkpoint` takes; all peers on the `model` axis must call it together."""
    network, layout = session.network, session.layout
    optimizer = {
        "momentum": gather_full(momentum_by_name(network, session.optimizer), network, layout),
        "learning_rates": rates_by_name(network, session.optimizer),
        "schedule": session.schedule.state_dict(),
    }
    if session.average is not None:
        optimizer["weights"] = gather_full(network.state_dict(), network, layout)
    checkpoint = Checkpoint(
        config=session.config,
        data=session.data,
        run_id=run_id,
        epoch=session.epoch,
        step=session.step,
        metrics=metrics,
    )
    return checkpoint, gather_full(session.result.state_dict(), network, layout), optimizer


class Meter:
    """Loss, speed and waiting time since the last reading, over all workers."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._reset()

    def _reset(self) -> None:
        # The loss is summed where it is made: reading it back each step would stall a GPU.
        self._loss = torch.zeros((), dtype=torch.float64, device=self._layout.device)
        self._images, self._waited, self._since = 0, 0.0, time.perf_counter()

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the same batches, counting the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor, images: int) -> None:
        """Count a batch of `images` with this mean loss."""
        self._loss += loss.double() * images
        self._images += images

    def read(self) -> dict[str, float]:
        """Return the metrics since the last reading; all workers must call it together.

        Raises:
            DivergenceError: the loss is infinite or not a number.
        """
        elapsed = time.perf_counter() - self._since
        own = torch.stack([self._loss, self._loss.new_tensor(self._images), self._loss.new_tensor(self._waited)])
        loss, images, waited = self._layout.sum_over_positions(own).tolist()
        self._reset()
        if not math.isfinite(loss):
            raise DivergenceError(f"the training loss is {loss}: try a lower optimizer.learning_rate")
        return {
            "train/loss": loss / images,
            "train/images_per_second": images / elapsed,
            "train/data_wait": waited / elapsed / self._layout.positions,
        }
