"""Intervals against published formulas and against what they promise: coverage."""

import math

import numpy as np
import pytest

from rlsys.statistics import mean_ci, paired_difference, positive_mean_ci, proportion_ci, roc_area


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (25, 50), (49, 50), (50, 50), (700, 1000)])
def test_proportion_is_wilsons(k, n):
    assert proportion_ci(k, n) == pytest.approx(wilson_by_hand(k, n), abs=1e-9)


def test_too_few_rows_have_no_interval():
    assert proportion_ci(0, 0) is None and proportion_ci(4, 4) is None and proportion_ci(5, 5) is not None
    assert mean_ci([0.5] * 19) is None and mean_ci([0.5] * 20) is not None
    assert positive_mean_ci([1.0] * 19, [1.0] * 19) is None
    assert roc_area(np.arange(60.0), np.arange(60) < 19)[1] is None
    assert mean_ci([1.0, 0.0] * 150, [10.0] * 10 + [1.0] * 290, [0] * 10 + [1] * 290) is None, "it hangs on ten rows"


def test_many_rows_have_the_normal_interval():
    data = np.random.default_rng(2).beta(2, 1, 5000)
    half = 1.96 * data.std(ddof=1) / math.sqrt(len(data))
    assert mean_ci(data) == pytest.approx((data.mean() - half, data.mean() + half), abs=0.05 * half)
    low, high = positive_mean_ci(data, np.ones(5000))
    assert (low, high) == pytest.approx((data.mean() - half, data.mean() + half), abs=0.05 * half)


def test_strata_take_out_what_lies_between_them():
    data = np.random.default_rng(2).binomial(1, np.repeat([0.1, 0.9], 500)).astype(float)
    low, high = mean_ci(data, strata=np.repeat([0, 1], 500))
    within = sum(part.var(ddof=1) / 500 / 4 for part in (data[:500], data[500:]))
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(within), rel=0.02)
    assert mean_ci(data)[1] - mean_ci(data)[0] > 1.5 * (high - low)


def test_an_area_has_delongs_variance():
    """Sun and Xu's formula (2014), from midranks."""
    rng = np.random.default_rng(0)
    ones, zeros = rng.normal(0.8, 1, 300), rng.normal(0, 1, 200)
    wins = (ones[:, None] > zeros).astype(float)
    area, (low, high) = roc_area(np.concatenate([ones, zeros]), np.repeat([True, False], [300, 200]))
    error = math.sqrt(wins.mean(axis=1).var(ddof=1) / 300 + wins.mean(axis=0).var(ddof=1) / 200)
    assert area == pytest.approx(wins.mean()) and high - low == pytest.approx(2 * 1.96 * error, rel=0.03)
    positive = np.repeat([True, False], [300, 200])
    copies = roc_area(np.tile(np.concatenate([ones, zeros]), 4), np.tile(positive, 4), np.tile(np.arange(500), 4))
    assert copies[1] == pytest.approx([low, high]), "copies of a row say no more"


def test_pairing_removes_what_rows_share():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, 300)
    result = paired_difference((hard + 1).tolist(), hard.tolist())
    assert result["mean"] == pytest.approx(1.0) and result["changed"] == 300
    assert result["ci95"] == pytest.approx([1.0, 1.0], abs=0.02)


def test_few_changed_rows_are_too_few():
    before = [0.0] * 100
    assert paired_difference([1.0] * 5 + before[5:], before) == {"mean": 0.05, "ci95": None, "changed": 5}
    low, high = paired_difference([1.0] * 6 + before[6:], before)["ci95"]
    assert 0 < low < 0.06 < high
    # One large change among small ones tells no more than itself.
    assert paired_difference([1.0] + [0.01] * 30 + before[31:], before)["ci95"] is None


def test_pairing_refuses_other_rows():
    with pytest.raises(ValueError, match="same rows"):
        paired_difference([1.0], [1.0, 2.0])
