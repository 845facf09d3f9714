"""Every interval that is printed: 95%, of means, ratios, paired differences and areas under the ROC curve, over independent rows.

None stands where there are too few rows for an interval that holds. docs/statistics.md has the methods, their sources, and the coverage of
each as `rlsys bench intervals` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

Interval = list[float]
"""[low, high]."""

Z = 1.959963984540054
"""The normal distribution's 97.5% point."""
FEWEST_PROPORTIONS = 5
"""Rows that an interval needs where each counts 0 or 1."""
FEWEST_MEANS = 20
"""The same where rows count anything between, so that their spread has to be estimated."""
FEWEST_CHANGES = 6
"""Changed rows that a paired difference needs: fewer are no evidence even if all point one way (sign test, 2 / 2^5 = 0.06)."""
FEWEST_PAIRED = 10
"""Rows that a paired difference needs, changed or not."""
UNEVEN = 1.6
"""How many times fewer rows of equal weight may be worth as much as those of a macro average: else it hangs on its smallest strata."""
DOUBT = 0.5
"""Weight of "the samples of a row say no more than one" beside the spread found; it counts against the square of the rows that tell."""

TOO_FEW = "too few rows"
"""What is printed in the place of an interval."""


def proportion_ci(successes: int, trials: int) -> Interval | None:
    """Wilson's score interval of a proportion, in [0, 1] (Wilson 1927)."""
    return mean_ci(np.repeat([1.0, 0.0], [successes, trials - successes]), ones=True)


def mean_ci(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    strata: Sequence[int] | np.ndarray | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    ones: bool = False,
) -> Interval | None:
    """Interval of the weighted mean of bounded values, one for each independent row.

    Wilson's, with as many trials as independent 0s and 1s would be as uncertain (Korn and Graubard 1998; Franco et al. 2019,
    doi 10.1093/jssam/smy019). With equal weights and rows of 0 and 1 it is Wilson's own. A ratio of sums over rows is such a mean: its
    values are the rows' own ratios, its weights their denominators.

    Args:
        values: [rows], each within `span`.
        weights: [rows], positive, whatever their sum; None: equal.
        strata: [rows], numbers from 0: groups whose shares of the weight are fixed, as of subsets in a macro average; None: one. The
            variance is that within strata; of a stratum of one row it is taken to be that of all rows.
        ones: each row counts 0 or 1, and could count nothing else: fewer rows are enough.
    """
    low, high = span
    found = (np.asarray(values, np.float64) - low) / (high - low)
    share = np.ones(len(found)) if weights is None else np.asarray(weights, np.float64)
    if not len(found):
        return None
    share = share / share.sum()
    mean = float(np.clip(share @ found, 0.0, 1.0))
    trials = 1 / (share @ share)
    if strata is not None and trials < len(found) / UNEVEN:
        return None
    if trials < (FEWEST_PROPORTIONS if ones and strata is None else FEWEST_MEANS) - 1e-9:
        return None
    variance, freedom = _variance(found, share, np.zeros(len(found), np.int64) if strata is None else np.asarray(strata), mean)
    tells = share * (found if mean <= 0.5 else 1 - found)
    bounds = _score(mean, variance, trials, freedom, _effective(tells), strata is not None)
    return [low + bound * (high - low) for bound in bounds]


def _variance(values: np.ndarray, share: np.ndarray, strata: np.ndarray, mean: float) -> tuple[float, float]:
    """(variance of the weighted mean, Satterthwaite's degrees of freedom)."""
    sizes = np.bincount(strata)
    if np.count_nonzero(sizes) == 1:
        return float(((share * (values - mean)) ** 2).sum() * len(values) / (len(values) - 1)), len(values) - 1
    of_stratum = np.bincount(strata, share)
    centres = np.bincount(strata, share * values) / np.where(of_stratum, of_stratum, 1)
    within = np.bincount(strata, (share * (values - centres[strata])) ** 2)
    pooled = np.bincount(strata, share**2) * (share @ (values - mean) ** 2)
    # A stratum's own variance counts by its degrees of freedom, that of all rows as one more.
    variances = (sizes * within + pooled) / np.maximum(sizes, 1)
    used = sizes > 0
    total = variances[used].sum()
    freedom = total**2 / max((variances[used] ** 2 / np.maximum(sizes[used] - 1, 1)).sum(), 1e-300)
    return float(total), max(float(freedom), 1.0)


def _effective(tells: np.ndarray) -> float:
    """How many equal contributions tell as much as these: (sum)^2 / sum of squares."""
    return float(tells.sum() ** 2 / (tells @ tells)) if tells.any() else 0.0


def _score(mean: float, variance: float, trials: float, freedom: float, telling: float, unbounded: bool = False) -> Interval:
    """Wilson's interval of a mean in [0, 1] whose variance is `variance` instead of mean (1 - mean) / trials.

    That is the largest there can be, unless `unbounded`: of strata, a small one may vary more than all do together. Where few rows tell
    (`telling`), the spread they show is little evidence, and the largest counts as well.
    """
    most = mean * (1 - mean) / trials
    design = variance / most if most > 0 else 1.0
    design = (telling**2 * design + DOUBT) / (telling**2 + DOUBT)
    largest = Z**2 * max(design, 1.0) if unbounded else Z**2
    width = min(float(stdtrit(freedom, 0.975)) ** 2 * design, largest) / trials
    centre, half = (mean + width / 2) / (1 + width), np.sqrt(width * mean * (1 - mean) + width**2 / 4) / (1 + width)
    # Rounding may leave 0 or 1 by a hair.
    return [float(max(min(centre - half, mean), 0.0)), float(min(max(centre + half, mean), 1.0))]


def positive_mean_ci(values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray) -> Interval | None:
    """Interval of the weighted mean of values that are not negative and have no bound, one for each row: Student's, of its logarithm."""
    found, share = np.asarray(values, np.float64), np.asarray(weights, np.float64) / np.sum(weights)
    mean = float(share @ found)
    if 1 / (share @ share) < FEWEST_MEANS - 1e-9 or mean <= 0:
        return None
    variance, freedom = _variance(found, share, np.zeros(len(found), np.int64), mean)
    reach = float(stdtrit(freedom, 0.975)) * np.sqrt(variance) / mean
    return [float(mean * np.exp(-reach)), float(mean * np.exp(reach))]


def paired_difference(after: Sequence[float], before: Sequence[float], reach: float = 1.0) -> dict[str, object]:
    """Mean of after - before over the same rows: {"mean": float, "ci95": [low, high] or None, "changed": rows}.

    Bonett and Price's adjusted Wald interval (2012, Journal of Educational and Behavioral Statistics 37), with half a row added that rises
    and half a row that falls, by the typical size of a change; Student's quantile where changes differ in size. None where too few rows
    change to tell.

    Args:
        reach: the largest difference that there can be.

    Raises:
        ValueError: other rows before than after.
    """
    if len(after) != len(before):
        raise ValueError(f"paired_difference: {len(after)} values after, {len(before)} before; they must be the same rows.")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    changes = np.abs(difference[difference != 0])
    told = {"mean": float(difference.mean()), "ci95": None, "changed": len(changes)}
    one_size = len(changes) > 0 and np.allclose(changes, changes[0])
    if len(difference) < (FEWEST_PAIRED if one_size else FEWEST_MEANS) or _effective(changes) < FEWEST_CHANGES - 1e-9:
        return told
    size = (changes @ changes) / changes.sum()
    rows = len(difference) + 1
    centre = difference.sum() / rows
    variance = (changes @ changes + size**2) / rows - centre**2
    half = (Z if one_size else float(stdtrit(len(difference) - 1, 0.975))) * np.sqrt(variance / rows)
    low, high = min(centre - half, told["mean"]), max(centre + half, told["mean"])
    return told | {"ci95": [float(max(low, -reach)), float(min(high, reach))]}


def roc_area(
    scores: np.ndarray, positive: np.ndarray, rows: np.ndarray | None = None, weights: np.ndarray | None = None
) -> tuple[float | None, Interval | None]:
    """Area under the ROC curve, ties half (Mann and Whitney), with its interval; None where only one label occurs.

    The variance is DeLong's, summed by row where a row has several texts (Obuchowski 1997, doi 10.2307/2533958), and the interval Wilson's
    with that variance: one of Newcombe's (2006, doi 10.1002/sim.2324) score intervals, as no variance of an area is larger than
    area (1 - area) / the rarer label's rows.

    Args:
        scores: [draws, texts] or [texts]; of draws the mean area is meant. positive: bool [texts]. weights: [texts], positive.
        rows: [texts], numbers from 0; None: each text is a row of its own.
    """
    scores = np.atleast_2d(scores)
    rows = np.arange(len(positive)) if rows is None else np.asarray(rows)
    weights = np.ones(len(positive)) if weights is None else np.asarray(weights, np.float64)
    if positive.all() or not positive.any():
        return None, None
    placements = np.mean([_placements(row, positive, weights) for row in scores], axis=0)
    share = weights / np.where(positive, weights[positive].sum(), weights[~positive].sum())
    area = float(share[positive] @ placements[positive])
    trials, telling, spread = [], [], np.zeros(rows.max() + 1)
    for label in (True, False):
        of_row = np.bincount(rows[positive == label], share[positive == label], len(spread))
        one_side = placements if area <= 0.5 else 1 - placements
        trials.append(1 / (of_row @ of_row))
        telling.append(_effective(np.bincount(rows, share * one_side * (positive == label))))
        spread += np.bincount(rows, share * (placements - area) * (positive == label))
    if min(trials) < FEWEST_MEANS - 1e-9:
        return area, None
    count = len(np.unique(rows))
    variance = float(spread @ spread) * count / (count - 1)
    return area, _score(area, variance, min(trials), min(trials) - 1, min(telling))


def _placements(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[texts]: the share of the other label's weight that a text stands on the right side of, ties half."""
    places = rankdata(scores, method="dense") - 1
    ones, zeros = (np.bincount(places, weights * (positive == which), places.max() + 1) for which in (True, False))
    below = (np.cumsum(zeros) - zeros / 2) / zeros.sum()
    above = 1 - (np.cumsum(ones) - ones / 2) / ones.sum()
    return np.where(positive, below[places], above[places])
