"""The computation on one batch, in training and in evaluation; it needs only torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from training.loop.precision import NO_SCALING

TOP_K = 5
"""The k of top-k accuracy, which is left out with fewer than k classes."""
IGNORED = -100
"""Label of a row of zeros in the place of an image that was left out: F.cross_entropy's own."""


def balanced_class_weights(counts: np.ndarray) -> Tensor:
    """Return a weight for each class that is inverse to its number of samples: float32 classes, for `mean_loss`.

    For `counts`, int64 classes, it is n / (C n_c), with n samples in C classes: the mean over all samples is 1, so the
    learning rate keeps its meaning (King and Zeng 2001, Logistic Regression in Rare Events Data; "balanced" in
    scikit-learn's `compute_class_weight`). Classes without samples get 0 and do not count.
    """
    weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 0).astype(np.float32))


def mean_loss(
    network: nn.Module, images: Tensor, labels: Tensor, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of a batch, 0 for `IGNORED` rows; `training.loop.compile` compiles it.

    With `class_weights`, float32 classes, it is their weighted sum over the number of images, and not over the sum of
    the weights: that differs between the parts of a batch, whose gradients would then not add up to those of all of it.
    """
    losses = F.cross_entropy(
        network(images), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
    )
    return losses / len(labels)


def fill_batch(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Fill a batch up to `size` rows with images of zeros and `IGNORED` labels.

    Every step then has the same shapes on all devices, and a gradient that depends on the other images only.
    """
    missing = size - len(labels)
    if not missing:
        return images, labels
    return F.pad(images, (0,) * 7 + (missing,)), F.pad(labels, (0, missing), value=IGNORED)


def train_step(
    network: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    autocast: torch.autocast,
    label_smoothing: float = 0.0,
    micro_batches: int = 1,
    loss_function: Callable[[nn.Module, Tensor, Tensor, float, Tensor | None], Tensor] = mean_loss,
    class_weights: Tensor | None = None,
    scaler: GradScaler = NO_SCALING,
) -> Tensor:
    """Take one optimizer step on the mean cross-entropy of a batch; return that loss, detached, on the device.

    Args:
        network: the network, or its DDP wrapper, whose backward averages the gradients.
        images: N,3,H,W float32; labels: N int64, some of them `IGNORED`.
        label_smoothing: part of the target spread evenly over all classes, 0 to 1 (Szegedy et al. 2016, section 7).
        micro_batches: parts in which the batch is computed; their gradients are summed and averaged over devices once.
        loss_function: `mean_loss`, or the result of `training.loop.compile.make_mean_loss`.
        class_weights: see `mean_loss`.
        scaler: of `training.loop.precision.make_scaler`.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    parts = list(zip(images.chunk(micro_batches), labels.chunk(micro_batches), strict=True))
    for index, (some, truth) in enumerate(parts):
        more_follow = index < len(parts) - 1
        with getattr(network, "no_sync", nullcontext)() if more_follow else nullcontext():
            with autocast:
                loss = loss_function(network, some, truth, label_smoothing, class_weights)
            # Parts may differ by an image: each is weighted by its number of images.
            loss = loss * (len(truth) / len(labels))
            scaler.scale(loss).backward()
        total += loss.detach()
    scaler.step(optimizer)
    scaler.update()
    return total


@torch.inference_mode()
def log_probabilities(network: nn.Module, images: Tensor, autocast: torch.autocast) -> Tensor:
    """Return float32 log-probabilities (N, classes) of images N,3,H,W or of their crops N,crops,3,H,W.

    Crops are averaged as probabilities (2012 paper, section 4.1; released code, LogregCostLayer). The network must be
    in eval mode.
    """
    crops = images.shape[1] if images.dim() == 5 else 1
    flat = images.reshape(-1, *images.shape[-3:]).contiguous(memory_format=torch.channels_last)
    with autocast:
        logits = network(flat)
    logs = F.log_softmax(logits.float(), dim=1)
    return logs if crops == 1 else average_probabilities(logs.reshape(-1, crops, logs.shape[1]), dim=1)


def average_probabilities(logs: Tensor, dim: int) -> Tensor:
    """Return the log of the mean over `dim` of the probabilities whose logs are given."""
    return torch.logsumexp(logs, dim=dim) - math.log(logs.shape[dim])


def score(logs: Tensor, labels: Tensor) -> Tensor:
    """Return [sum of cross-entropies, top-1 hits, top-5 hits, samples] of a batch as float64: sums, never means."""
    loss = F.nll_loss(logs, labels, reduction="sum")
    best = logs.topk(min(TOP_K, logs.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack(
        [loss.double(), best[:, 0].sum().double(), best.sum().double(), loss.new_tensor(len(labels)).double()]
    )
