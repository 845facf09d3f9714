"""Intervals for proportions and for paired differences. All intervals are 95%."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000


def proportion_ci(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval of a proportion in [0, 1]; (0, 1) when there were no trials."""
    if trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_ci(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent `values` (rows); seeded, so that a report is repeatable."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("mean_ci: no values; an interval needs at least one row.")
    rng = np.random.default_rng(seed)
    # In slices, as resamples x rows of a large benchmark would not fit in memory at once.
    means = np.concatenate([data[rng.integers(0, data.size, (200, data.size))].mean(axis=1) for _ in range(RESAMPLES // 200)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(after: Sequence[float], before: Sequence[float], seed: int = 0) -> dict[str, object]:
    """Mean of after - before over the same rows, with its bootstrap interval: {"mean": float, "ci95": [low, high]}."""
    if len(after) != len(before):
        raise ValueError(f"paired_difference: {len(after)} values after, {len(before)} before; they must be the same rows.")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return {"mean": float(difference.mean()), "ci95": list(mean_ci(difference.tolist(), seed))}
