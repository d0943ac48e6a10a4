"""Prediction of a split with one or several networks, each fed as it was trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from errors import InputError
from pipeline.loader import Loader, make_loader
from pipeline.reading.staging import Staging
from preprocess.manifest import Manifest
from training.ensemble import Ensemble, average
from training.load_model import LoadedModel
from training.loop.step import TOP_K
from training.report.metrics import Predictions


def check_data(trained: LoadedModel, manifest: Manifest, folder: str) -> None:
    """Raise `InputError` unless the data set has the classes and the short side that the network was trained on."""
    theirs, ours = ([entry.id for entry in classes] for classes in (manifest.classes, trained.data.classes))
    if theirs != ours:
        pairs = enumerate(itertools.zip_longest(theirs, ours, fillvalue="none"))
        label, (found, expected) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
        raise InputError(
            f"{folder} has other classes ({len(theirs)}) than {trained.name} ({len(ours)}): "
            f"class {label} is {found}, not {expected}; build it with --classes and the shards of the training"
        )
    if manifest.short_side != trained.data.short_side:
        raise InputError(
            f"{folder} has a short side of {manifest.short_side} pixels, "
            f"{trained.name} is for {trained.data.short_side}"
        )


def check_split(option: str, manifest: Manifest, split: str, folder: str) -> None:
    """Raise `InputError` unless the data set has samples of the split that `option` names."""
    if not manifest.split(split).samples:
        others = ", ".join(name for name in manifest.splits if manifest.samples(name))
        raise InputError(f"{option} is {split}: {folder} has no samples of it; use {others}")


def open_loader(
    trained: LoadedModel, data: str, split: str, batch_size: int, crops: int, staging: Staging | None = None
) -> Loader:
    """Return a loader that gives a split as this network was trained to see it."""
    return make_loader(
        data,
        split,
        batch_size,
        mode="eval",
        device=str(trained.device),
        crop=trained.config.image_size,
        crops=crops,
        units=trained.config.units,
        mean=trained.config.mean,
        color_stats=trained.data.color_stats,
        mean_image=trained.mean_image,
        staging=staging,
    )


def open_loaders(
    ensemble: Ensemble, data: str, split: str, batch_size: int, crops: int, staging: Staging | None = None
) -> list[Loader]:
    """Return a loader of a split for each of the ensemble's `views`."""
    return [open_loader(trained, data, split, batch_size, crops, staging) for trained in ensemble.views.values()]


class SplitPredictions(NamedTuple):
    """Predictions for every sample of a split, in its order."""

    average: Predictions
    """Of the average of the networks' probabilities."""
    members: list[Predictions]
    """Of each network by itself; of a single one the same as `average`."""


def predict_split(ensemble: Ensemble, loaders: Sequence[Loader]) -> SplitPredictions:
    """Predict every sample of a split; a single network is `Ensemble((trained,))`.

    Args:
        ensemble: the networks.
        loaders: see `open_loaders`; they may give several crops of each sample.
    """
    count = len(ensemble.members)
    # Of a single network, the average is the network.
    batches: list[list[_Scored]] = [[] for _ in range(count + 1 if count > 1 else 1)]
    loading = tqdm(zip(*loaders, strict=True), desc="evaluate", unit="batch", total=len(loaders[0]), disable=None)
    for views in loading:
        labels = views[0][1]
        member_logs = ensemble.log_probabilities([images for images, _ in views])
        shown = [*member_logs, average(member_logs)] if count > 1 else member_logs
        for scored, logs in zip(batches, shown, strict=True):
            scored.append(_score(logs, labels))
    predictions = [_concatenate(scored) for scored in batches]
    return SplitPredictions(predictions[-1], predictions[:count])


class _Scored(NamedTuple):
    """A batch of `Predictions`, on the device."""

    labels: Tensor
    top_classes: Tensor
    top_probabilities: Tensor
    losses: Tensor


def _score(logs: Tensor, labels: Tensor) -> _Scored:
    best = logs.topk(min(TOP_K, logs.shape[1]), dim=1)
    losses = torch.nn.functional.nll_loss(logs, labels, reduction="none")
    return _Scored(labels, best.indices, best.values.exp(), losses.double())


def _concatenate(batches: Sequence[_Scored]) -> Predictions:
    return Predictions(*(torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True)))
