import json
import math

import numpy as np
import pytest

from errors import InputError
from preprocess.manifest import ClassEntry
from training.report.metrics import (
    ConfusedPair,
    Evaluated,
    Predictions,
    accuracy_histogram,
    calibration_error,
    confidence_bins,
    confused_pairs,
    confusion_matrix,
    summarise,
)

CLASSES = [ClassEntry(f"n{i}", name) for i, name in enumerate(["ant", "bee", "cat", "dog", "eel", "fox"])]
EVALUATED = Evaluated(split="val", crops=1, view="1crop", weights_sha256="cd" * 32, manifest_sha256="ab" * 32)
GIVEN = {"evaluated": EVALUATED, "checkpoint": "runs/a/model.pt", "images_per_second": 99.5}


def make(rows, losses=None):
    """Build predictions from (label, guesses, probabilities) rows."""
    labels, guesses, probabilities = zip(*rows, strict=True)
    return Predictions(
        np.array(labels, np.int64),
        np.array(guesses, np.int64),
        np.array(probabilities, np.float32),
        np.array(losses if losses is not None else np.ones(len(rows)), np.float64),
    )


SURE, EVEN = (0.6, 0.2, 0.1, 0.05, 0.05), (0.3, 0.2, 0.2, 0.2, 0.1)


@pytest.fixture
def six():
    """Seven samples of six classes: 3 first guesses right, 5 of 7 within the five; class 4 has no samples."""
    return make(
        [
            (0, (0, 1, 2, 3, 4), SURE),
            (0, (0, 2, 1, 3, 4), EVEN),
            (0, (1, 0, 2, 3, 4), SURE),
            (1, (0, 2, 3, 4, 5), SURE),  # not among the five
            (2, (2, 1, 0, 3, 4), EVEN),
            (3, (5, 1, 2, 4, 3), EVEN),
            (5, (1, 2, 0, 3, 4), SURE),  # not among the five
        ],
        losses=[0.5, 1.25, 0.75, 4.0, 1.0, 2.0, 4.5],
    )


def test_report_equals_the_numbers_counted_by_hand(six):
    report = summarise(six, CLASSES, **GIVEN)
    assert {name: value for name, value in report.items() if name != "per_class"} == {
        "split": "val",
        "samples": 7,
        "crops": 1,
        "top1": 3 / 7,
        "top5": 5 / 7,
        "top1_error": 4 / 7,
        "top5_error": 2 / 7,
        "loss": 2.0,
        "checkpoint": "runs/a/model.pt",
        "manifest_sha256": "ab" * 32,
        "images_per_second": 99.5,
        "view": "1crop",
        "weights_sha256": "cd" * 32,
        "balanced_accuracy": pytest.approx((2 / 3 + 0 + 1 + 0 + 0) / 5),
        "members": [],
        "comparison": None,
        "retrieval": None,
    }
    assert report["per_class"] == [
        {"id": "n0", "name": "ant", "samples": 3, "top1": 2 / 3, "top5": 1.0},
        {"id": "n1", "name": "bee", "samples": 1, "top1": 0.0, "top5": 0.0},
        {"id": "n2", "name": "cat", "samples": 1, "top1": 1.0, "top5": 1.0},
        {"id": "n3", "name": "dog", "samples": 1, "top1": 0.0, "top5": 1.0},
        {"id": "n4", "name": "eel", "samples": 0, "top1": None, "top5": None},
        {"id": "n5", "name": "fox", "samples": 1, "top1": 0.0, "top5": 0.0},
    ]
    json.dumps(report, allow_nan=False)


def test_fewer_than_five_classes_have_no_top5():
    few = make([(0, (0, 1, 2), (0.5, 0.3, 0.2)), (2, (1, 0, 2), (0.4, 0.3, 0.3))])
    report = summarise(few, CLASSES[:3], **GIVEN)
    assert (report["top1"], report["top5"], report["top5_error"]) == (0.5, None, None)
    assert [row["top5"] for row in report["per_class"]] == [None] * 3
    assert [row["top1"] for row in report["per_class"]] == [1.0, None, 0.0]


def test_five_classes_have_a_top5():
    report = summarise(make([(4, (0, 1, 2, 3, 4), SURE)]), CLASSES[:5], **GIVEN)
    assert (report["top1"], report["top5"]) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_by_sample(six, bad):
    six.losses[4] = bad
    with pytest.raises(InputError, match=r"runs/a/model\.pt .* 1 of 7 samples .*first: sample 4"):
        summarise(six, CLASSES, **GIVEN)


def test_probabilities_that_are_not_finite_are_refused(six):
    six.top_probabilities[2] = math.nan
    with pytest.raises(InputError, match="first: sample 2"):
        summarise(six, CLASSES, **GIVEN)


def test_an_empty_split_is_refused():
    empty = Predictions(np.zeros(0, np.int64), np.zeros((0, 5), np.int64), np.zeros((0, 5)), np.zeros(0))
    with pytest.raises(InputError, match="'val' has no samples"):
        summarise(empty, CLASSES, **GIVEN)


def test_predictions_that_do_not_fit_are_refused(six):
    with pytest.raises(ValueError, match="6 classes; 5 needed"):
        summarise(make([(0, (0, 1, 2), (0.5, 0.3, 0.2))]), CLASSES, **GIVEN)
    with pytest.raises(ValueError, match=r"labels span 0\.\.5; there are 5 classes"):
        summarise(six, CLASSES[:5], **GIVEN)
    with pytest.raises(ValueError, match=r"top_classes span 1\.\.5; there are 5 classes"):
        summarise(make([(0, (1, 2, 3, 4, 5), SURE)]), CLASSES[:5], **GIVEN)
    with pytest.raises(ValueError, match="best first"):
        make([(0, (0, 1), (0.2, 0.8))])
    with pytest.raises(ValueError, match=r"of shape \(N,\)"):
        Predictions(six.labels, six.top_classes, six.top_probabilities, six.losses[:3])


def test_confused_pairs_are_ordered_by_count_then_share(six):
    rows = [(0, (1, 0), (0.9, 0.1))] * 2 + [(0, (0, 1), (0.9, 0.1))] * 2 + [(1, (0, 1), (0.9, 0.1))] * 2
    assert confused_pairs(make(rows), 5) == [ConfusedPair(1, 0, 2, 1.0), ConfusedPair(0, 1, 2, 0.5)]
    # Equal counts: of a class with one sample before one with three, then in the order of the labels.
    pairs = [(p.true, p.predicted, p.count) for p in confused_pairs(six, 10)]
    assert pairs == [(1, 0, 1), (3, 5, 1), (5, 1, 1), (0, 1, 1)]
    assert len(confused_pairs(six, 2)) == 2
    assert confused_pairs(make([(0, (0, 1), (0.9, 0.1))]), 5) == []


def test_confusion_matrix_has_true_classes_as_rows(six):
    matrix = confusion_matrix(six, 6)
    assert matrix[0].tolist() == [2, 1, 0, 0, 0, 0]
    assert matrix[5, 1] == 1
    assert matrix.sum() == 7


def test_calibration_of_hand_made_bins(six):
    bins = confidence_bins(six)
    assert [(b.samples, b.correct) for b in bins if b.samples] == [(3, 2), (4, 1)]
    assert bins[0].accuracy is None
    # |2 - 3 * 0.3| + |1 - 4 * 0.6|, over 7 samples.
    assert calibration_error(bins) == pytest.approx((1.1 + 1.4) / 7, abs=1e-6)
    certain = confidence_bins(make([(0, (0, 1), (1.0, 0.0))]))
    assert (len(certain), certain[9].samples, calibration_error(certain)) == (10, 1, 0.0)


def test_histogram_of_class_accuracies_leaves_out_classes_without_samples(six):
    counts = accuracy_histogram(summarise(six, CLASSES, **GIVEN)["per_class"], bins=20)
    assert (counts[0], counts[13], counts[19], sum(counts)) == (3, 1, 1, 5)
