"""Intervals against published formulas and against what they promise: coverage."""

import math

import numpy as np
import pytest

from rlsys.statistics import mean_ci, paired_difference, proportion_ci


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (25, 50), (49, 50), (50, 50), (700, 1000)])
def test_proportion_is_wilsons(k, n):
    assert proportion_ci(k, n) == pytest.approx(wilson_by_hand(k, n), abs=1e-9)


def test_no_trials_say_nothing():
    assert proportion_ci(0, 0) == (0.0, 1.0)


def test_bootstrap_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = mean_ci(rng.normal(3.0, 1.0, 40).tolist(), seed=trial)
        hits += low <= 3.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_agrees_with_the_normal_interval_on_many_rows():
    data = np.random.default_rng(2).normal(0.5, 2.0, 5000)
    half = 1.96 * data.std(ddof=1) / math.sqrt(len(data))
    assert mean_ci(data.tolist()) == pytest.approx((data.mean() - half, data.mean() + half), abs=0.1 * half)


def test_pairing_removes_what_rows_share():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, 300)
    result = paired_difference((hard + 1).tolist(), hard.tolist())
    assert result["mean"] == pytest.approx(1.0)
    assert result["ci95"] == pytest.approx([1.0, 1.0])


def test_pairing_refuses_other_rows():
    with pytest.raises(ValueError, match="same rows"):
        paired_difference([1.0], [1.0, 2.0])


def test_no_rows_no_interval():
    with pytest.raises(ValueError, match="at least one row"):
        mean_ci([])
