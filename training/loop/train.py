"""The training loop of one worker, without Ray and MLflow: `training.launch` brings those."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from training.loop.state import TrainState, mean_loss_of
from training.loop.step import TOP_K, log_probabilities, score, train_step
from training.optim.optimizer import freeze_layers
from training.parallel.layout import Layout

LogMetrics = Callable[[dict[str, float], int], None]
"""Takes metrics by name, and their global step."""


class DivergenceError(RuntimeError):
    """The loss is no longer a number; trying again from the same state would end the same way."""


def train(state: TrainState, log: LogMetrics, save: Callable[[TrainState, dict[str, float]], None]) -> None:
    """Train to the configured number of epochs; after each, validate, log and save."""
    while state.epoch < state.config.epochs:
        _seed_epoch(state)
        _freeze_due_layers(state)
        train_epoch(state, log)
        metrics = validate(state)
        state.schedule.after_epoch(1 - metrics["val/top1"])
        state.epoch += 1
        log(metrics, state.step)
        save(state, metrics)


def train_epoch(state: TrainState, log: LogMetrics) -> None:
    """Take one optimizer step on every batch of the next epoch."""
    config = state.config
    state.ddp_network.train()
    meter = Meter(state.layout)
    for images, labels in meter.watch(state.train_loader):
        learning_rate = state.schedule.learning_rate
        loss = train_step(
            state.ddp_network,
            state.optimizer,
            images,
            labels,
            state.autocast,
            config.label_smoothing,
            config.micro_batches,
            state.mean_loss,
        )
        if state.ema is not None:
            state.ema.update_parameters(state.network)
        meter.add(loss, len(labels))
        state.schedule.after_step()
        state.step += 1
        if state.step % config.log_every == 0:
            log({"train/lr": learning_rate, **meter.read()}, state.step)


def validate(state: TrainState) -> dict[str, float]:
    """Return loss, top-1 and top-5 accuracy (0 to 1) over the val split, each sample counted once."""
    model, layout, config = state.eval_model.eval(), state.layout, state.config
    sums = torch.zeros(4, dtype=torch.float64, device=layout.device)
    shape = (config.batch_size // layout.num_batch_ranks, 3, config.image_size, config.image_size)
    for images, labels in layout.pad_to_equal_batches(state.val_loader, shape):
        sums += score(log_probabilities(model, images, state.autocast)[: len(labels)], labels)
    loss, top1, top5, samples = layout.sum_over_batch_ranks(sums).tolist()
    if samples != state.val_samples:
        raise RuntimeError(f"validation saw {samples:.0f} samples; the manifest has {state.val_samples}")
    metrics = {"val/loss": loss / samples, "val/top1": top1 / samples}
    return {**metrics, "val/top5": top5 / samples} if len(state.data.classes) >= TOP_K else metrics


def _seed_epoch(state: TrainState) -> None:
    # Separate dropout masks on every device in every epoch, also after a restart at its beginning.
    entropy = (state.config.seed, state.epoch, state.layout.global_rank)
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def _freeze_due_layers(state: TrainState) -> None:
    if not freeze_layers(state.network, state.config.optimizer, state.epoch):
        return
    # DistributedDataParallel waits for the gradient of every parameter that had one when it was made: make it again.
    # The epoch is the same on every worker, so all of them come here together.
    state.ddp_network = state.network
    state.mean_loss = mean_loss_of(state.config, state.layout)
    gc.collect()  # its hooks live as long as it does
    state.ddp_network = state.layout.wrap_for_training(state.network)


class Meter:
    """Loss, speed and waiting time since the last reading, over all workers."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._reset()

    def _reset(self) -> None:
        # The loss is summed on the device: reading it at each step would stall a GPU.
        self._loss = torch.zeros((), dtype=torch.float64, device=self._layout.device)
        self._images, self._waited, self._since = 0, 0.0, time.perf_counter()

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same batches and count the time spent waiting for them."""
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
        loss, images, waited = self._layout.sum_over_batch_ranks(own).tolist()
        self._reset()
        if not math.isfinite(loss):
            raise DivergenceError(f"the training loss is {loss}: use a lower optimizer.learning_rate")
        return {
            "train/loss": loss / images,
            "train/images_per_second": images / elapsed,
            "train/data_wait": waited / elapsed / self._layout.num_batch_ranks,
        }
