"""95% confidence intervals of means, ratios, paired differences and ROC AUC, over independent rows.

An interval is None if there are too few rows for reliable coverage. docs/statistics.md documents the methods, their sources, and the
coverage of each as measured by `rlsys bench intervals`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from rlsys.documents.core import Difference, Interval

Z = 1.959963984540054
"""97.5% quantile of the standard normal distribution."""
MIN_ROWS_BINARY = 5
"""Minimum rows for an interval if every row is 0 or 1."""
MIN_ROWS_MEAN = 20
"""Minimum rows if values are continuous, so that their variance has to be estimated."""
MIN_CHANGED = 6
"""Minimum changed rows for a paired difference: fewer are not significant even if all agree in sign (sign test, 2 / 2^5 = 0.06)."""
MIN_ROWS_PAIRED = 10
"""Minimum rows for a paired difference, changed or not."""
MAX_WEIGHT_RATIO = 1.6
"""Maximum ratio of rows to effective rows of a stratified mean; above it, the smallest strata dominate."""
PRIOR_WEIGHT = 0.5
"""Weight of the prior assumption "design effect 1" against the estimated one, whose weight is the squared number of effective rows."""

TOO_FEW = "too few rows"
"""Printed in place of a missing interval."""


def proportion_ci(successes: int, trials: int) -> Interval | None:
    """Return the Wilson score interval of a proportion, in [0, 1] (Wilson 1927)."""
    return mean_ci(np.repeat([1.0, 0.0], [successes, trials - successes]), binary=True)


def mean_ci(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    strata: Sequence[int] | np.ndarray | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    binary: bool = False,
) -> Interval | None:
    """Return the interval of the weighted mean of bounded values, one per independent row.

    The Wilson interval with the effective sample size of the weighted mean (Korn and Graubard 1998; Franco et al. 2019,
    doi 10.1093/jssam/smy019); for equally weighted binary rows, the plain Wilson interval. A ratio of sums over rows is such a mean: the
    values are the ratios of the rows, the weights their denominators.

    Args:
        values: [rows], each within `span`.
        weights: [rows], positive, any sum; None: equal.
        strata: [rows], numbered from 0: groups with a fixed share of the weight, like subsets in a macro average; None: one stratum. The
            variance is within strata; a stratum of one row uses the variance over all rows.
        binary: every row can only be 0 or 1, so fewer rows suffice.
    """
    low, high = span
    scaled = (np.asarray(values, np.float64) - low) / (high - low)
    share = np.ones(len(scaled)) if weights is None else np.asarray(weights, np.float64)
    if not len(scaled):
        return None
    share = share / share.sum()
    mean = float(np.clip(share @ scaled, 0.0, 1.0))
    trials = 1 / (share @ share)
    if strata is not None and trials < len(scaled) / MAX_WEIGHT_RATIO:
        return None
    if trials < (MIN_ROWS_BINARY if binary and strata is None else MIN_ROWS_MEAN) - 1e-9:
        return None
    variance, freedom = _variance(scaled, share, np.zeros(len(scaled), np.int64) if strata is None else np.asarray(strata), mean)
    contributions = share * (scaled if mean <= 0.5 else 1 - scaled)
    lower, upper = _wilson(mean, variance, trials, freedom, _effective(contributions), strata is not None)
    return low + lower * (high - low), low + upper * (high - low)


def _variance(values: np.ndarray, share: np.ndarray, strata: np.ndarray, mean: float) -> tuple[float, float]:
    """Return (variance of the weighted mean, Satterthwaite degrees of freedom)."""
    sizes = np.bincount(strata)
    if np.count_nonzero(sizes) == 1:
        return float(((share * (values - mean)) ** 2).sum() * len(values) / (len(values) - 1)), len(values) - 1
    of_stratum = np.bincount(strata, share)
    centres = np.bincount(strata, share * values) / np.where(of_stratum, of_stratum, 1)
    within = np.bincount(strata, (share * (values - centres[strata])) ** 2)
    pooled = np.bincount(strata, share**2) * (share @ (values - mean) ** 2)
    # A stratum's own variance is weighted by its degrees of freedom, the pooled variance counts as one more.
    variances = (sizes * within + pooled) / np.maximum(sizes, 1)
    used = sizes > 0
    total = variances[used].sum()
    freedom = total**2 / max((variances[used] ** 2 / np.maximum(sizes[used] - 1, 1)).sum(), 1e-300)
    return float(total), max(float(freedom), 1.0)


def _effective(contributions: np.ndarray) -> float:
    """Return the effective sample size of unequal contributions, (sum)^2 / sum of squares (Kish)."""
    return float(contributions.sum() ** 2 / (contributions @ contributions)) if contributions.any() else 0.0


def _wilson(mean: float, variance: float, trials: float, freedom: float, effective: float, unbounded: bool = False) -> Interval:
    """Return the Wilson interval of a mean in [0, 1] with variance `variance` instead of mean (1 - mean) / trials.

    The latter is the maximum variance, unless `unbounded`: a small stratum may vary more than all rows together. With few `effective`
    rows the estimated variance is unreliable and is shrunk towards that maximum.
    """
    largest_variance = mean * (1 - mean) / trials
    design = variance / largest_variance if largest_variance > 0 else 1.0
    design = (effective**2 * design + PRIOR_WEIGHT) / (effective**2 + PRIOR_WEIGHT)
    limit = Z**2 * max(design, 1.0) if unbounded else Z**2
    width = min(float(stdtrit(freedom, 0.975)) ** 2 * design, limit) / trials
    centre, half = (mean + width / 2) / (1 + width), np.sqrt(width * mean * (1 - mean) + width**2 / 4) / (1 + width)
    # Rounding can move a bound slightly past the mean or out of [0, 1].
    return float(max(min(centre - half, mean), 0.0)), float(min(max(centre + half, mean), 1.0))


def positive_mean_ci(values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray) -> Interval | None:
    """Return the interval of the weighted mean of non-negative, unbounded values, one per row: Student's t on the log of the mean."""
    array, share = np.asarray(values, np.float64), np.asarray(weights, np.float64) / np.sum(weights)
    mean = float(share @ array)
    if 1 / (share @ share) < MIN_ROWS_MEAN - 1e-9 or mean <= 0:
        return None
    variance, freedom = _variance(array, share, np.zeros(len(array), np.int64), mean)
    half = float(stdtrit(freedom, 0.975)) * np.sqrt(variance) / mean
    return float(mean * np.exp(-half)), float(mean * np.exp(half))


def paired_difference(after: Sequence[float] | np.ndarray, before: Sequence[float] | np.ndarray, largest: float = 1.0) -> Difference:
    """Return the mean of after - before over the same rows, with its interval (None if too few rows changed).

    Bonett and Price's adjusted Wald interval (2012, Journal of Educational and Behavioral Statistics 37), which adds half a row that rises
    and half a row that falls by the typical size of a change. Uses Student's t quantile if the changes differ in size.

    Args:
        largest: the largest possible difference.

    Raises:
        ValueError: `after` and `before` differ in length.
    """
    if len(after) != len(before):
        raise ValueError(f"paired_difference: {len(after)} values after, {len(before)} before; they must be the same rows.")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    changes = np.abs(difference[difference != 0])
    mean = float(difference.mean())
    equal_size = len(changes) > 0 and np.allclose(changes, changes[0])
    if len(difference) < (MIN_ROWS_PAIRED if equal_size else MIN_ROWS_MEAN) or _effective(changes) < MIN_CHANGED - 1e-9:
        return Difference(mean=mean, ci95=None, changed=len(changes))
    size = (changes @ changes) / changes.sum()
    rows = len(difference) + 1
    centre = difference.sum() / rows
    variance = (changes @ changes + size**2) / rows - centre**2
    half = (Z if equal_size else float(stdtrit(len(difference) - 1, 0.975))) * np.sqrt(variance / rows)
    low, high = min(centre - half, mean), max(centre + half, mean)
    return Difference(mean=mean, ci95=(float(max(low, -largest)), float(min(high, largest))), changed=len(changes))


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the ROC AUC (Mann-Whitney, ties count half) of each resample, float64 [resamples]; NaN if only one label occurs.

    Args:
        scores: [resamples, texts] or [texts].
        positive: bool [texts].
        weights: [texts], positive; None: equal.
    """
    scores = np.atleast_2d(scores)
    weights = np.ones(len(positive)) if weights is None else np.asarray(weights, np.float64)
    if positive.all() or not positive.any():
        return np.full(len(scores), np.nan)
    share = weights[positive] / weights[positive].sum()
    return np.array([share @ _placements(row, positive, weights)[positive] for row in scores])


def auc_ci(
    scores: np.ndarray, positive: np.ndarray, rows: np.ndarray | None = None, weights: np.ndarray | None = None
) -> tuple[float | None, Interval | None]:
    """Return the ROC AUC, averaged over resamples, with its interval; (None, None) if only one label occurs.

    The variance is DeLong's, clustered by row for rows of several texts (Obuchowski 1997, doi 10.2307/2533958). The interval is Wilson's
    with that variance, one of Newcombe's score intervals (2006, doi 10.1002/sim.2324): the variance of an AUC is at most
    AUC (1 - AUC) / the number of rows of the rarer label.

    Args:
        scores, positive, weights: as in `auc`.
        rows: [texts], row of each text, numbered from 0; None: each text is its own row.
    """
    scores = np.atleast_2d(scores)
    rows = np.arange(len(positive)) if rows is None else np.asarray(rows)
    weights = np.ones(len(positive)) if weights is None else np.asarray(weights, np.float64)
    if positive.all() or not positive.any():
        return None, None
    placements = np.mean([_placements(row, positive, weights) for row in scores], axis=0)
    share = weights / np.where(positive, weights[positive].sum(), weights[~positive].sum())
    area = float(share[positive] @ placements[positive])
    trials: list[float] = []
    effective: list[float] = []
    deviations = np.zeros(rows.max() + 1)
    for label in (True, False):
        row_share = np.bincount(rows[positive == label], share[positive == label], len(deviations))
        contributions = placements if area <= 0.5 else 1 - placements
        trials.append(float(1 / (row_share @ row_share)))
        effective.append(_effective(np.bincount(rows, share * contributions * (positive == label))))
        deviations += np.bincount(rows, share * (placements - area) * (positive == label))
    if min(trials) < MIN_ROWS_MEAN - 1e-9:
        return area, None
    count = len(np.unique(rows))
    variance = float(deviations @ deviations) * count / (count - 1)
    return area, _wilson(area, variance, min(trials), min(trials) - 1, min(effective))


def _placements(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted fraction of opposite-label texts that each text is ranked correctly against, [texts]; ties count half."""
    ranks = rankdata(scores, method="dense") - 1
    ones, zeros = (np.bincount(ranks, weights * (positive == which), ranks.max() + 1) for which in (True, False))
    below = (np.cumsum(zeros) - zeros / 2) / zeros.sum()
    above = 1 - (np.cumsum(ones) - ones / 2) / ones.sum()
    return np.where(positive, below[ranks], above[ranks])
