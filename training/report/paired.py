"""Two networks on the same samples: McNemar's test and the difference of their accuracies."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.05
"""Level of significance: below it, a difference is called hardly chance."""


class Comparison(TypedDict):
    """Two networks on the same samples: how many each got right, and McNemar's test.

    `p_value` is the probability of a difference at least as large between networks that are equally good: exact, two
    sided (McNemar 1947). `difference` is the top-1 accuracy of the second less that of the first, as a fraction of 1,
    and `difference_interval` its 95 % confidence interval, low and high (Newcombe 1998, method 10).
    """

    both_right: int
    first_only: int
    second_only: int
    both_wrong: int
    p_value: float
    difference: float
    difference_interval: list[float]


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare the networks whose first guesses were right where `first` and `second`, (N,) bool, are true."""
    both_right, both_wrong = int((first & second).sum()), int((~first & ~second).sum())
    first_only, second_only = int((first & ~second).sum()), int((second & ~first).sum())
    differing = first_only + second_only
    return Comparison(
        both_right=both_right,
        first_only=first_only,
        second_only=second_only,
        both_wrong=both_wrong,
        p_value=float(binomtest(first_only, differing).pvalue) if differing else 1.0,
        difference=(second_only - first_only) / len(first),
        difference_interval=list(difference_interval(both_right, first_only, second_only, both_wrong)),
    )


def wilson_interval(right: int, samples: int) -> tuple[float, float]:
    """Return the interval that holds the true accuracy with 95 % confidence (Wilson 1927)."""
    found = binomtest(right, samples).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def difference_interval(both_right: int, first_only: int, second_only: int, both_wrong: int) -> tuple[float, float]:
    """Return the interval that holds the true difference, second less first, with 95 % confidence.

    The Wilson intervals of both accuracies are combined, with their correlation (Newcombe 1998, Improved confidence
    intervals for the difference between binomial proportions based on paired data, method 10).
    """
    samples = both_right + first_only + second_only + both_wrong
    first, second = both_right + first_only, both_right + second_only
    low1, high1 = wilson_interval(first, samples)
    low2, high2 = wilson_interval(second, samples)
    p1, p2 = first / samples, second / samples
    phi = _correlation(both_right, first_only, second_only, both_wrong)

    def distance(one: float, other: float) -> float:
        # Rounding may bring the root of 0 below it.
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return p2 - p1 - distance(p2 - low2, high1 - p1), p2 - p1 + distance(high2 - p2, p1 - low1)


def _correlation(both_right: int, first_only: int, second_only: int, both_wrong: int) -> float:
    """Return the correlation of being right, a positive one corrected for continuity; 0 where one does not vary."""
    margins = (
        (both_right + first_only) * (second_only + both_wrong) * (both_right + second_only) * (first_only + both_wrong)
    )
    if margins == 0:
        return 0.0
    covariance: float = both_right * both_wrong - first_only * second_only
    if covariance > 0:
        covariance = max(covariance - (both_right + first_only + second_only + both_wrong) / 2, 0.0)
    return covariance / math.sqrt(margins)
