"""McNemar's test and the interval of a paired difference, against numbers made by hand."""

import itertools
import math

import numpy as np
import pytest

from training.report.paired import compare, difference_interval, wilson_interval


def hits(both_right: int, first_only: int, second_only: int, both_wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where two networks are right, for these counts of samples."""
    counts = (both_right, first_only, second_only, both_wrong)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_two_networks_are_compared_by_the_samples_that_only_one_gets_right() -> None:
    first, second = hits(50, 1, 8, 41)
    found = compare(first, second)
    # 2 (C(9, 0) + C(9, 1)) / 2^9
    assert found["p_value"] == pytest.approx(20 / 512)
    assert [found[key] for key in ("both_right", "first_only", "second_only", "both_wrong")] == [50, 1, 8, 41]
    assert found["difference"] == pytest.approx(0.07)
    assert compare(second, first)["p_value"] == found["p_value"]
    assert compare(first, first)["p_value"] == 1.0


@pytest.mark.parametrize("counts", [(0, 1), (3, 3), (5, 12), (40, 31), (200, 260)])
def test_the_p_value_is_that_of_the_exact_binomial(counts: tuple[int, int]) -> None:
    few, many = sorted(counts)
    tail = sum(math.comb(few + many, k) for k in range(few + 1)) / 2 ** (few + many)
    assert compare(*hits(10, *counts, 10))["p_value"] == pytest.approx(min(1.0, 2 * tail))


def test_the_interval_is_newcombe_s() -> None:
    """Table 6.2 of Altman et al. 2000, Statistics with Confidence: 14, 5, 0 and 22 of 41."""
    z, n, p1, p2 = 1.959964, 41, 19 / 41, 14 / 41

    def wilson(p: float) -> tuple[float, float]:
        middle, half = 2 * n * p + z * z, z * math.sqrt(z * z + 4 * n * p * (1 - p))
        return (middle - half) / (2 * (n + z * z)), (middle + half) / (2 * (n + z * z))

    (low1, high1), (low2, high2) = wilson(p1), wilson(p2)
    assert wilson_interval(19, 41) == pytest.approx((low1, high1), abs=1e-6)
    phi = (14 * 22 - 41 / 2) / math.sqrt(19 * 22 * 14 * 27)
    low = p1 - p2 - math.sqrt((p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2)
    high = p1 - p2 + math.sqrt((high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2)
    assert (low, high) == pytest.approx((0.0115, 0.2265), abs=2e-4)
    assert difference_interval(14, 5, 0, 22) == pytest.approx((-high, -low), abs=1e-6)
    assert difference_interval(14, 0, 5, 22) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("chances", [(0.5, 0.1, 0.15, 0.25), (0.3, 0.05, 0.25, 0.4)])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(chances: tuple[float, ...]) -> None:
    """Over all tables of 16 samples, each with its probability."""
    n, truth, coverage = 16, chances[2] - chances[1], 0.0
    for cuts in itertools.combinations(range(n + 3), 3):
        counts = [b - a - 1 for a, b in itertools.pairwise((-1, *cuts, n + 3))]
        low, high = difference_interval(*counts)
        ways = math.factorial(n) / math.prod(math.factorial(count) for count in counts)
        coverage += (low <= truth <= high) * ways * math.prod(p**k for p, k in zip(chances, counts, strict=True))
    assert 0.93 < coverage < 0.99


@pytest.mark.parametrize("counts", [(5, 0, 0, 0), (0, 0, 0, 5), (0, 5, 0, 0), (3, 0, 0, 2), (1, 0, 0, 0)])
def test_networks_that_never_or_always_agree_have_an_interval(counts: tuple[int, int, int, int]) -> None:
    found = compare(*hits(*counts))
    low, high = found["difference_interval"]
    assert -1 <= low <= found["difference"] <= high <= 1
    assert low < high
