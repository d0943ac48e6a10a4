"""The numbers of an evaluation: integer counts over all samples, each divided once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from errors import InputError
from preprocess.manifest import ClassEntry
from training.loop.step import TOP_K
from training.report.paired import Comparison


@dataclass(frozen=True)
class Predictions:
    """The predictions of a network for every sample of a split; row i is sample i in the order of the split.

    `labels` (N,) int64; `top_classes` (N, k) int64 and `top_probabilities` (N, k) float32, best first, with
    k = min(5, classes), softmax (its mean over the crops where there are several); `losses` (N,) float64, the
    cross-entropy of each sample in nats.

    Raises:
        ValueError: the shapes do not belong together, or a row is not ordered best first.
    """

    labels: np.ndarray
    top_classes: np.ndarray
    top_probabilities: np.ndarray
    losses: np.ndarray

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in self.__dataclass_fields__}
        if self.labels.ndim != 1 or self.losses.shape != self.labels.shape:
            raise ValueError(f"labels and losses must both be of shape (N,): {shapes}")
        if self.top_classes.ndim != 2 or self.top_classes.shape[0] != len(self.labels):
            raise ValueError(f"top_classes must be of shape (N, k): {shapes}")
        if self.top_probabilities.shape != self.top_classes.shape:
            raise ValueError(f"top_probabilities must be of the shape of top_classes: {shapes}")
        if (np.diff(self.top_probabilities, axis=1) > 0).any():
            raise ValueError("top_probabilities must be ordered best first in every row")

    @property
    def hits(self) -> np.ndarray:
        """(N, k) bool, true where the j-th guess is the true class; at most one per row."""
        return self.top_classes == self.labels[:, None]

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy in nats."""
        # fsum rounds once, so the order of the samples does not matter.
        return math.fsum(self.losses) / len(self.losses)

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool, true where the first guess is the true class."""
        return self.top_classes[:, 0] == self.labels


class ClassResult(TypedDict):
    """One row of `per_class`; the accuracies are null for a class without samples."""

    id: str
    name: str
    samples: int
    top1: float | None
    top5: float | None


class MemberResult(TypedDict):
    """The accuracy of one network of an ensemble by itself, as a fraction of 1; `top5` as in `Report`."""

    checkpoint: str
    top1: float
    top5: float | None


class RetrievalResult(TypedDict):
    """Retrieval in `report.json`: the mean part of the six nearest images that are of the query's class, 0-1.

    `split` is where the neighbours come from, `images` how many of it were searched.
    """

    split: str
    queries: int
    images: int
    precision_at_6: float
    pixel_precision_at_6: float


class Evaluated(TypedDict):
    """What was evaluated, and how: two evaluations in which these are the same have the same numbers.

    `view` is `1crop`, `10crops` or `dense`.
    """

    split: str
    crops: int
    view: str
    weights_sha256: str
    manifest_sha256: str


class Report(Evaluated):
    """The content of `report.json`; accuracies and errors are fractions of 1, `loss` is a mean in nats.

    `balanced_accuracy` is the mean of the classes' top-1 accuracies, of those that have samples (Brodersen et al. 2010,
    The Balanced Accuracy and Its Posterior Distribution; scikit-learn's `balanced_accuracy_score`).
    `per_class` is in the order of the labels. With fewer than five classes every top-5 figure is null.
    `images_per_second` is over the wall time of the evaluation, loading included. `members` is empty for one network,
    `comparison` null unless there are two,
    `retrieval` null where it was not asked for.
    """

    samples: int
    top1: float
    top5: float | None
    top1_error: float
    top5_error: float | None
    balanced_accuracy: float
    loss: float
    per_class: list[ClassResult]
    checkpoint: str
    images_per_second: float
    members: list[MemberResult]
    comparison: Comparison | None
    retrieval: RetrievalResult | None


def summarise(
    predictions: Predictions,
    classes: Sequence[ClassEntry],
    evaluated: Evaluated,
    *,
    checkpoint: str,
    images_per_second: float,
    members: Sequence[MemberResult] = (),
    comparison: Comparison | None = None,
    retrieval: RetrievalResult | None = None,
) -> Report:
    """Return the content of `report.json`.

    Raises:
        InputError: the split is empty, or a loss or probability is not finite: such outputs cannot be ranked.
        ValueError: a label or a guess is not one of `classes`, or k is not min(5, classes).
    """
    check_predictions(predictions, len(classes), evaluated["split"], checkpoint)
    samples = len(predictions.labels)
    per_class = class_results(predictions, classes)
    top1 = int(predictions.correct.sum())
    top5 = int(predictions.hits.sum()) if len(classes) >= TOP_K else None
    return Report(
        split=evaluated["split"],
        samples=samples,
        crops=evaluated["crops"],
        top1=top1 / samples,
        top5=None if top5 is None else top5 / samples,
        top1_error=(samples - top1) / samples,
        top5_error=None if top5 is None else (samples - top5) / samples,
        loss=predictions.mean_loss,
        per_class=per_class,
        checkpoint=checkpoint,
        manifest_sha256=evaluated["manifest_sha256"],
        images_per_second=images_per_second,
        view=evaluated["view"],
        weights_sha256=evaluated["weights_sha256"],
        balanced_accuracy=_mean([row["top1"] for row in per_class if row["top1"] is not None]),
        members=list(members),
        comparison=comparison,
        retrieval=retrieval,
    )


def check_predictions(predictions: Predictions, classes: int, split: str, checkpoint: str) -> None:
    """Check that predictions of a split can be counted.

    Raises:
        InputError: the split is empty, or a loss or probability is not finite: such outputs cannot be ranked.
        ValueError: a label or a guess is not one of `classes` classes, or k is not min(5, classes).
    """
    _check_finite(predictions, split, checkpoint)
    _check_classes(predictions, classes)


def _check_finite(predictions: Predictions, split: str, checkpoint: str) -> None:
    if not len(predictions.labels):
        raise InputError(f"split {split!r} has no samples: there is nothing to evaluate")
    finite = np.isfinite(predictions.losses) & np.isfinite(predictions.top_probabilities).all(axis=1)
    if not finite.all():
        raise InputError(
            f"checkpoint {checkpoint} gives a loss or probability that is not finite for "
            f"{np.count_nonzero(~finite)} of {len(finite)} samples of split {split!r} (first: sample "
            f"{int(np.argmin(finite))}): its training has diverged or the file is damaged"
        )


def _check_classes(predictions: Predictions, classes: int) -> None:
    guesses = predictions.top_classes
    if guesses.shape[1] != min(TOP_K, classes):
        raise ValueError(f"{guesses.shape[1]} guesses a sample for {classes} classes; {min(TOP_K, classes)} needed")
    for name, values in (("labels", predictions.labels), ("top_classes", guesses)):
        if values.min() < 0 or values.max() >= classes:
            raise ValueError(f"{name} span {values.min()}..{values.max()}; there are {classes} classes")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def class_results(predictions: Predictions, classes: Sequence[ClassEntry]) -> list[ClassResult]:
    """Return the accuracy on the samples of each class, in the order of the labels."""
    labels, count = predictions.labels, len(classes)
    samples = np.bincount(labels, minlength=count).tolist()
    top1 = np.bincount(labels[predictions.correct], minlength=count).tolist()
    top5 = np.bincount(labels[predictions.hits.any(axis=1)], minlength=count).tolist()
    return [
        ClassResult(
            id=entry.id,
            name=entry.name,
            samples=n,
            top1=first / n if n else None,
            top5=five / n if n and count >= TOP_K else None,
        )
        for entry, n, first, five in zip(classes, samples, top1, top5, strict=True)
    ]


@dataclass(frozen=True)
class ConfusedPair:
    """`count` samples of class `true` (a label) were taken for class `predicted`: `share` of that class."""

    true: int
    predicted: int
    count: int
    share: float


def confused_pairs(predictions: Predictions, worst: int) -> list[ConfusedPair]:
    """Return up to `worst` ordered pairs of classes, the most frequent mistake first.

    Equal counts are ordered by the share of the true class, then by label.
    """
    wrong = ~predictions.correct
    mistakes = np.stack([predictions.labels[wrong], predictions.top_classes[wrong, 0]], axis=1)
    pairs, counts = np.unique(mistakes, axis=0, return_counts=True)
    samples = np.bincount(predictions.labels)[pairs[:, 0]]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], samples, -counts))[:worst]
    return [
        ConfusedPair(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i]), int(counts[i]) / int(samples[i]))
        for i in order
    ]


def confusion_matrix(predictions: Predictions, classes: int) -> np.ndarray:
    """Return (classes, classes) int64 counts; row: the true class, column: the first guess."""
    cells = predictions.labels * classes + predictions.top_classes[:, 0]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class ConfidenceBin:
    """The samples whose first guess had a probability in [low, high), the last bin closed; 0-1 units.

    `confidence` and `accuracy` are means over the bin, None where it is empty.
    """

    low: float
    high: float
    samples: int
    correct: int
    confidence: float | None
    accuracy: float | None

    @property
    def range(self) -> str:
        """The bin in per cent."""
        return f"{self.low:.0%} to {self.high:.0%}"


def confidence_bins(predictions: Predictions, bins: int = 10) -> list[ConfidenceBin]:
    """Return `bins` bins of equal width over the probability of the first guess."""
    confidence = predictions.top_probabilities[:, 0].astype(np.float64)
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    samples = np.bincount(index, minlength=bins).tolist()
    correct = np.bincount(index[predictions.correct], minlength=bins).tolist()
    sums = np.bincount(index, weights=confidence, minlength=bins).tolist()
    return [
        ConfidenceBin(i / bins, (i + 1) / bins, n, right, total / n if n else None, right / n if n else None)
        for i, (n, right, total) in enumerate(zip(samples, correct, sums, strict=True))
    ]


def calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """Return the expected calibration error: |accuracy - confidence|, weighted by the samples of each bin."""
    total = sum(b.samples for b in bins)
    return sum(abs(b.correct - b.samples * b.confidence) for b in bins if b.confidence is not None) / total


def accuracy_histogram(per_class: Sequence[ClassResult], bins: int = 20) -> list[int]:
    """Return how many classes have their top-1 accuracy in each of `bins` equal steps from 0 to 1."""
    values = [row["top1"] for row in per_class if row["top1"] is not None]
    counts: Any = np.bincount([min(int(value * bins + 1e-9), bins - 1) for value in values], minlength=bins)
    return counts.tolist()
