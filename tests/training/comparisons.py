"""Two networks to compare, with drawn predictions of the same samples."""

from collections.abc import Sequence

import numpy as np
from report_pages import predict

from preprocess.manifest import ClassEntry
from training.report.comparison import ComparisonReport, Side, Sides, summarise_comparison
from training.report.metrics import Evaluated, Predictions

KERNELS = np.random.default_rng(0).normal(size=(8, 3, 5, 5))
HISTORY = {"train/loss": {1: 3.0, 2: 2.0}, "val/loss": {2: 2.5}, "val/top1": {2: 0.25}, "train/lr": {1: 0.1, 2: 0.1}}


def same_samples(first: Predictions, seed: int, accuracy: float) -> Predictions:
    """Draw the predictions of another network for the samples of `first`."""
    other = predict(int(first.labels.max()) + 2, len(first.labels), seed, accuracy)
    classes = int(first.labels.max()) + 2
    # The guesses of `predict` are the label plus an offset: the offsets of the other, at these labels.
    guesses = (first.labels[:, None] + other.top_classes - other.labels[:, None]) % classes
    return Predictions(first.labels, guesses, other.top_probabilities, other.losses)


def make_sides(classes: int, samples: int) -> Sides:
    """Return two networks, equally good up to chance; the last class has no samples."""
    first = predict(classes, samples)
    predictions = (first, same_samples(first, seed=1, accuracy=0.6))
    fields = ({"seed": 0, "epochs": 2, "network.name": "alexnet"}, {"seed": 1, "epochs": 2, "optimizer.x": "<i>"})
    one, other = (
        Side(
            name=f"run <{mark}>",
            run_id=mark * 32,
            checkpoint=f"run {mark * 32}, last checkpoint",
            network="alexnet",
            parameters=1234567,
            weights_sha256=mark * 64,
            fields=fields[number],
            conv1=KERNELS,
            towers=2 - number,
            history=HISTORY,
            predictions=predictions[number],
        )
        for number, mark in enumerate("ab")
    )
    return one, other


def make_report(sides: Sides, names: Sequence[str]) -> ComparisonReport:
    """Return their comparison, for classes of these names."""
    classes = [ClassEntry(f"n{i}", name) for i, name in enumerate(names)]
    evaluated = Evaluated(split="val", crops=1, view="1crop", weights_sha256="cd" * 32, manifest_sha256="ab" * 32)
    return summarise_comparison(sides, classes, evaluated)
