"""Intervals against what they promise: a setting or two of each kind; `rlsys bench intervals` simulates them all."""

from __future__ import annotations

import numpy as np
import pytest

from launch.bench.coverage import cases

SETTINGS = {
    "accuracy, one sample a row": ("5 rows, 30%", "200 rows, 2%"),
    "accuracy, k samples a row": ("50 rows, k 4, correlation 0.3, 10%", "200 rows, k 16, correlation 1.0, 50%"),
    "accuracy where parsed, 10% not": ("50 rows, k 4, correlation 0.7, 50%", "50 rows, k 16, correlation 0.3, 80%"),
    "vote@k over subset draws": ("100 rows, k 4 of 8, beta(2, 2)",),
    "mean of subsets": ("subsets 60 of 1, k 1, 40% to 60%", "subsets 23 of 2, k 1, 75% to 95%"),
    "ROC-AUC, one text a row": ("30 against 100, 0.75",),
    "ROC-AUC, several texts a row": ("240 against 240 in rows of 4, correlation 0.2, 0.8",),
    "paired difference, one sample a row": ("50 rows, 12 changed", "200 rows, 25 changed"),
    "paired difference, k samples a row": ("50 rows, k 4, correlation 0.3, 50%, 10% of the wrong mended",),
    "calibration error, root mean square": ("300 rows of 1, calibrated", "300 rows of 1, overconfident"),
    "mean of the benchmarks": ("benchmarks of (50, 200) rows, about 50%",),
}
TRIALS = 1000


@pytest.mark.parametrize(("kind", "setting"), [(kind, setting) for kind, settings in SETTINGS.items() for setting in settings])
def test_an_interval_holds_the_true_value_in_95_of_100_cases(kind, setting):
    (case,) = (case for case in cases() if (case.kind, case.setting) == (kind, setting))
    rng = np.random.default_rng(0)
    told = [(truth, ci) for truth, ci in (case.trial(rng) for _ in range(TRIALS)) if ci is not None]
    assert len(told) > TRIALS / 2
    coverage = np.mean([low <= truth <= high for truth, (low, high) in told])
    # 93% to 97%, and two standard errors of the simulation, 0.7 points each.
    assert 0.916 <= coverage <= 0.984
