"""The training loop of one worker, without Ray and MLflow: `training.launch` brings those."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import torch

from errors import InputError
from training.loop.metrics import EPOCH, TOP1
from training.loop.request import Request, StoppedError
from training.loop.state import TrainState, mean_loss_of, set_random_states
from training.loop.step import TOP_K, fill_batch, log_probabilities, score, train_step
from training.optim.optimizer import freeze_layers

GPU_REQUEST_BATCHES = 20
"""On GPUs, requests are looked for after so many batches."""
LogMetrics = Callable[[dict[str, float], int], None]
"""Takes metrics by name, and their global step."""


SaveCheckpoint = Callable[[TrainState, dict[str, float]], None]
"""Takes the state, and the validation metrics of an epoch that has just ended, or none within an epoch."""


def train(state: TrainState, log: LogMetrics, save: SaveCheckpoint) -> None:
    """Train to the configured number of epochs; after each, validate, log and save.

    Without validation, `EPOCH` is logged instead.

    Raises:
        StoppedError: `state.take_request` of any process says so.
        DivergenceError: the loss is no longer a number.
    """
    while state.epoch < state.config.epochs:
        _freeze_due_layers(state)
        _seed(state)
        train_epoch(state, log, save)
        metrics = {EPOCH: state.epoch + 1.0} if state.val_loader is None else validate(state, save)
        if state.config.on_bad_sample == "skip":
            skipped = torch.tensor(state.skipped, device=state.layout.device)
            metrics["train/skipped"] = int(state.layout.sum_over_batch_ranks(skipped))
        if TOP1 in metrics:
            state.schedule.after_epoch(1 - metrics[TOP1])
        state.epoch, state.batch, state.skipped = state.epoch + 1, 0, 0
        state.meter.reset()
        log(metrics, state.step)
        save(state, metrics)


def train_epoch(state: TrainState, log: LogMetrics, save: SaveCheckpoint) -> None:
    """Take one optimizer step on every batch of the next epoch that is not done; save when the clock says so."""
    config, meter, clock = state.config, state.meter, CheckpointClock(state)
    batch_size = config.batch_size // state.layout.num_batch_ranks
    state.ddp_network.train()
    meter.start_clock()
    for images, labels in meter.watch(state.train_loader):
        learning_rate = state.schedule.learning_rate
        loss = train_step(
            state.ddp_network,
            state.optimizer,
            *fill_batch(images, labels, batch_size),
            state.autocast,
            config.label_smoothing,
            config.micro_batches,
            state.mean_loss,
            state.class_weights,
            state.scaler,
        )
        if state.ema is not None:
            state.ema.update_parameters(state.network)
        meter.add(loss.double() * batch_size, len(labels))
        state.skipped += batch_size - len(labels)
        state.schedule.after_step()
        state.step, state.batch, state.batches_seen = state.step + 1, state.batch + 1, state.batches_seen + 1
        if _is_point_due(state):
            log({"train/lr": learning_rate, **meter.read()}, state.step)
        request = _take_request(state, state.step)
        if request or clock.is_due():
            save(state, {})
            clock.restart()
        if request > Request.SAVE:
            raise StoppedError(request)


def _is_point_due(state: TrainState) -> bool:
    """Tell whether a point of the curves is due: every `log_every` steps, and at the end of an epoch without one."""
    steps_since, steps_per_epoch = state.step % state.config.log_every, len(state.train_loader)
    return steps_since == 0 or (state.batch == steps_per_epoch and steps_since >= steps_per_epoch)


def _take_request(state: TrainState, batches: int) -> Request:
    """Return the highest request to any process after so many batches; all must call it together."""
    # A GPU would stall if every batch waited for an answer.
    interval = 1 if state.layout.device.type == "cpu" else GPU_REQUEST_BATCHES
    if state.take_request is None or batches % interval != 0:
        return Request.NONE
    return Request(state.layout.max_of(state.take_request()))


class CheckpointClock:
    """Tells when the next checkpoint within an epoch is due."""

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self.restart()

    def restart(self) -> None:
        """Count the minutes from now on."""
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """Tell whether a checkpoint is due after the last step; all processes must ask together."""
        step, settings = self._state.step, self._state.config.checkpoint
        if settings.every_steps is not None and step % settings.every_steps == 0:
            return True
        if settings.every_minutes is None or step % self._state.config.log_every != 0:
            return False
        late = time.monotonic() - self._since >= 60 * settings.every_minutes
        return bool(self._state.layout.max_of(late))


def validate(state: TrainState, save: SaveCheckpoint) -> dict[str, float]:
    """Return loss, top-1 and top-5 accuracy (0 to 1) over the val split, each sample counted once.

    With `on_bad_sample` skip, also the number of samples that were left out.

    Raises:
        StoppedError: as `train`; the checkpoint is of the end of the epoch's last step, and validation comes again.
        InputError: not one sample can be decoded.
    """
    loader = state.val_loader
    assert loader is not None
    model, layout, config = state.eval_model.eval(), state.layout, state.config
    sums = torch.zeros(5, dtype=torch.float64, device=layout.device)
    skipped_before = loader.skipped
    shape = (config.batch_size // layout.num_batch_ranks, 3, config.image_size, config.image_size)
    for number, (images, labels) in enumerate(layout.pad_to_equal_batches(loader, shape), 1):
        sums[:4] += score(log_probabilities(model, images, state.autocast)[: len(labels)], labels)
        state.batches_seen += 1
        if request := _take_request(state, number):
            save(state, {})
        if request > Request.SAVE:
            raise StoppedError(request)
    sums[4] = loader.skipped - skipped_before
    loss, top1, top5, samples, skipped = layout.sum_over_batch_ranks(sums).tolist()
    if samples + skipped != state.val_samples:
        raise RuntimeError(f"validation saw {samples + skipped:.0f} samples; the manifest has {state.val_samples}")
    if not samples:
        raise InputError(f"data is {config.data}: not one of its {state.val_samples} val samples decodes")
    metrics = {"val/loss": loss / samples, TOP1: top1 / samples}
    if len(state.data.classes) >= TOP_K:
        metrics["val/top5"] = top5 / samples
    if config.on_bad_sample == "skip":
        metrics["val/skipped"] = skipped
    return metrics


def _seed(state: TrainState) -> None:
    """Give every device dropout masks of its own in every epoch, and go on with them within one."""
    if state.random is not None:
        set_random_states(state.layout.device, state.random)
        state.random = None
        return
    entropy = [state.config.seed, state.epoch, state.layout.global_rank]
    if state.batch:  # continued on another number of devices
        entropy.append(state.batch)
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def _freeze_due_layers(state: TrainState) -> None:
    if not freeze_layers(state.network, state.config.optimizer, state.epoch):
        return
    # DistributedDataParallel waits for the gradient of every parameter that had one when it was made: make it again.
    # The epoch is the same on every worker, so all of them come here together.
    state.ddp_network = state.network
    state.mean_loss = mean_loss_of(state.config, state.layout)
    gc.collect()  # its hooks live as long as it does
    state.ddp_network = state.layout.wrap_for_training(state.network, state.config.image_size)
