"""Intervals against published formulas and against what they promise: coverage."""

import math

import numpy as np
import pytest

from rlsys.evaluation.statistics import _variance, auc_ci, mean_ci, paired_difference, positive_mean_ci, proportion_ci


def difference(*arguments, **options) -> dict:
    return paired_difference(*arguments, **options).to_json()


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
    assert auc_ci(np.arange(60.0), np.arange(60) < 19)[1] is None
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
    area, (low, high) = auc_ci(np.concatenate([ones, zeros]), np.repeat([True, False], [300, 200]))
    error = math.sqrt(wins.mean(axis=1).var(ddof=1) / 300 + wins.mean(axis=0).var(ddof=1) / 200)
    assert area == pytest.approx(wins.mean()) and high - low == pytest.approx(2 * 1.96 * error, rel=0.03)
    positive = np.repeat([True, False], [300, 200])
    copies = auc_ci(np.tile(np.concatenate([ones, zeros]), 4), np.tile(positive, 4), np.tile(np.arange(500), 4))
    assert copies[1] == pytest.approx([low, high]), "copies of a row say no more"


def test_pairing_removes_what_rows_share():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, 300)
    result = difference((hard + 1).tolist(), hard.tolist())
    assert result["mean"] == pytest.approx(1.0) and result["changed"] == 300
    assert result["ci95"] == pytest.approx([1.0, 1.0], abs=0.02)


def test_few_changed_rows_are_too_few():
    before = [0.0] * 100
    assert difference([1.0] * 5 + before[5:], before) == {"mean": 0.05, "ci95": None, "changed": 5}
    low, high = difference([1.0] * 6 + before[6:], before)["ci95"]
    assert 0 < low < 0.06 < high
    # One large change among small ones tells no more than itself.
    assert difference([1.0] + [0.01] * 30 + before[31:], before)["ci95"] is None


def test_pairing_refuses_other_rows():
    with pytest.raises(ValueError, match="same rows"):
        difference([1.0], [1.0, 2.0])


def test_changes_of_one_size_have_bonett_and_prices_interval():
    """40 rows, 10 up and 3 down: half a row that rises and half a row that falls are added, so 41 rows and 14 changes."""
    after = [1.0] * 10 + [0.0] * 30
    before = [0.0] * 10 + [1.0] * 3 + [0.0] * 27
    centre = 7 / 41
    half = 1.959963984540054 * math.sqrt((14 / 41 - centre**2) / 41)
    result = difference(after, before)
    assert result == {"mean": 7 / 40, "changed": 13, "ci95": pytest.approx([centre - half, centre + half])}
    doubled = difference([2 * value for value in after], [2 * value for value in before], largest=2.0)
    assert doubled["ci95"] == pytest.approx([2 * bound for bound in result["ci95"]])
    swapped = difference(before, after)
    assert swapped["ci95"] == pytest.approx([-bound for bound in reversed(result["ci95"])])


def test_changes_of_several_sizes_have_students_quantile():
    """Changes .1, -.2, .3 ten times and 2 rows without: the typical size is the sum of squares over the sum of sizes."""
    changes = [0.1, -0.2, 0.3] * 10 + [0.0, 0.0]
    size = (0.01 + 0.04 + 0.09) / 0.6
    centre = 2.0 / 33
    variance = (10 * 0.14 + size**2) / 33 - centre**2
    half = 2.0395134464 * math.sqrt(variance / 33)  # t of 31 degrees of freedom, 97.5%
    result = difference(changes, [0.0] * 32)
    assert result["changed"] == 30 and result["mean"] == pytest.approx(2 / 32)
    assert result["ci95"] == pytest.approx([centre - half, centre + half])


def test_a_difference_reaches_no_farther_than_it_can():
    after, before = [1.0] * 12, [0.0] * 12
    assert difference(after, before)["ci95"][1] == 1.0 and difference(before, after)["ci95"][0] == -1.0
    assert difference(after, before, largest=2.0)["ci95"][1] >= 1.0
    assert difference([1.0] * 9, [0.0] * 9)["ci95"] is None and difference([1.0] * 10, [0.0] * 10)["ci95"] is not None
    sizes = [0.5 + i / 100 for i in range(20)]
    assert difference(sizes[:19], [0.0] * 19)["ci95"] is None and difference(sizes, [0.0] * 20)["ci95"] is not None
    assert difference([0.0] * 30, [0.0] * 30) == {"mean": 0.0, "ci95": None, "changed": 0}


def test_a_mean_without_a_bound_has_students_interval_of_its_logarithm():
    values, weights = [1.0, 2.0, 4.0] * 8, [1.0, 1.0, 2.0] * 8
    share = [weight / 32 for weight in weights]
    mean = sum(w * v for w, v in zip(share, values))
    variance = sum((w * (v - mean)) ** 2 for w, v in zip(share, values)) * 24 / 23
    reach = 2.0686576104 * math.sqrt(variance) / mean  # t of 23 degrees of freedom, 97.5%
    assert mean == 11 / 4 and 1 / sum(w * w for w in share) > 20
    assert positive_mean_ci(values, weights) == pytest.approx([mean * math.exp(-reach), mean * math.exp(reach)])
    assert positive_mean_ci([0.0] * 30, [1.0] * 30) is None


def test_a_span_and_the_size_of_weights_do_not_matter():
    rng = np.random.default_rng(4)
    values, weights = rng.beta(2, 1, 60), rng.uniform(0.5, 1.5, 60)
    low, high = mean_ci(values, weights)
    assert mean_ci(6 * values - 2, weights, span=(-2.0, 4.0)) == pytest.approx([6 * low - 2, 6 * high - 2])
    assert mean_ci(values, 7 * weights) == pytest.approx([low, high])
    assert mean_ci(1 - values, weights) == pytest.approx([1 - high, 1 - low])
    order = rng.permutation(60)
    assert mean_ci(values[order], weights[order]) == pytest.approx([low, high])
    assert low < weights @ values / weights.sum() < high


def test_rows_of_little_weight_are_no_more_rows():
    """20 rows are enough; 40 of which 2 carry almost everything are not, as those say no more than two."""
    assert mean_ci([0.25, 0.75] * 10) is not None
    assert mean_ci([0.25, 0.75] * 20, [1000.0, 1000.0] + [1.0] * 38) is None
    assert mean_ci([1.0, 0.0] * 3, binary=True) is not None and mean_ci([1.0, 0.0] * 3) is None


def test_an_area_of_weighted_texts_counts_pairs_by_weight():
    scores, positive = np.array([2.0, 1.0, 1.0, 0.0]), np.array([True, False, True, False])
    weights = np.array([3.0, 2.0, 1.0, 2.0])
    wins = [(0, 1, 1.0), (0, 3, 1.0), (2, 1, 0.5), (2, 3, 1.0)]
    expected = sum(weights[i] * weights[j] * win for i, j, win in wins) / sum(weights[i] * weights[j] for i, j, _ in wins)
    assert auc_ci(scores, positive, None, weights) == (pytest.approx(expected), None)
    assert auc_ci(np.stack([scores, -scores]), positive, None, weights)[0] == pytest.approx(0.5)  # the mean over draws
    assert auc_ci(scores, np.ones(4, bool)) == auc_ci(scores, np.zeros(4, bool)) == (None, None)


def test_a_stratums_variance_is_its_own_and_that_of_all_rows_as_one_degree_of_freedom_more():
    """Strata 1 0 0, 1 1 and 0 of six equal rows: the first varies by 1/54 within, each by 1/144 more for the 1/4 that all rows vary by."""
    values, strata = np.array([1.0, 0, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 2])
    first, other = 1 / 54 + 1 / 144, 1 / 144
    variance, freedom = _variance(values, np.full(6, 1 / 6), strata, 0.5)
    assert variance == pytest.approx(first + 2 * other)
    assert freedom == pytest.approx((first + 2 * other) ** 2 / (first**2 / 2 + other**2 + other**2))
    skewed = np.array([1.0, 0, 0, 0, 0, 0])  # of one row each, the strata have nothing but what all rows vary by
    assert _variance(skewed, np.full(6, 1 / 6), np.arange(6), 1 / 6)[0] == pytest.approx(5 / 36 / 6)


def test_an_area_of_turned_scores_has_the_turned_interval():
    """Two of thirty right texts stand among the wrong ones: few rows tell, on whichever side of one half the area lies."""
    scores, positive = np.concatenate([np.arange(100.0, 128), [3.5, 7.5], np.arange(30.0)]), np.repeat([True, False], 30)
    area, (low, high) = auc_ci(scores, positive)
    turned, interval = auc_ci(-scores, positive)
    assert area == pytest.approx((28 * 30 + 4 + 8) / 900) and turned == pytest.approx(1 - area)
    assert interval == pytest.approx([1 - high, 1 - low]) and low < area < high
