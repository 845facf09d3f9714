"""Quality of predicted probabilities: ROC AUC, accuracy, Brier score, calibration error and reliability diagram.

Confidence intervals are over rows, as texts of a row are not independent (docs/statistics.md). The expected calibration error has none: it
is positive even for a perfectly calibrated model, by an amount that depends on the number of texts, and is reported next to that amount.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtrc, chndtr, expit
from scipy.stats import chi2

from rlsys.documents.core import Estimate, Interval
from rlsys.documents.scalar import Bin, ExpectedError, Heldout, Level
from rlsys.evaluation.statistics import TOO_FEW, auc, auc_ci, mean_ci, positive_mean_ci
from rlsys.system.terminal import Table

BINS = 10
"""Bins of equal width over probabilities in [0, 1]; a bin includes its lower edge, and the last one both edges."""
MIN_ROWS_CALIBRATION = 100
"""Minimum rows for an interval of the calibration error."""
SIMULATIONS = 1000
"""Label sets sampled to estimate the expected calibration error of a calibrated model."""


def summarise(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[float] | np.ndarray,
    rows: Sequence[str | int],
    weights: Sequence[float] | np.ndarray | None = None,
) -> Heldout:
    """Evaluate logits against binary labels.

    Args:
        scores: finite logits; the probability is sigmoid(score).
        labels: 1 or 0 for each score.
        rows: the row id of each score.
        weights: positive; None: equal.

    Raises:
        ValueError: no scores, different lengths, or scores that are not finite.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    weight = np.ones_like(score) if weights is None else np.asarray(weights, np.float64)
    if not (len(score) == len(label) == len(rows) == len(weight)) or not len(score):
        raise ValueError(
            f"{len(score)} scores, {len(label)} labels, {len(rows)} rows, {len(weight)} weights: expected equally many, at least 1."
        )
    if not np.isfinite(score).all():
        raise ValueError(f"{(~np.isfinite(score)).sum()} of {len(score)} scores are not finite: the model cannot be used.")
    row = np.unique(np.asarray(rows), return_inverse=True)[1]
    probability = expit(score)
    bins = _bins(probability)
    area, area_ci = auc_ci(score, label > 0.5, row, weight)
    by_row = [float(auc(score[texts], label[texts] > 0.5, weight[texts])[0]) for texts in _texts_by_row(row)]
    within = [value for value in by_row if not np.isnan(value)]
    return Heldout(
        n=len(score),
        rows=int(row.max()) + 1,
        base_rate=float(np.average(label, weights=weight)),
        auc=None if area is None else Estimate(value=area, ci95=area_ci),
        **measures(score, label, row, weight),
        ece=_expected_error(probability, label, weight, bins),
        auc_within_row=Estimate(value=float(np.mean(within)), ci95=mean_ci(within), rows=len(within)) if within else None,
        table=[_bin(number, bins == number, probability, label, weight, row) for number in range(BINS)],
    )


def measures(score: np.ndarray, label: np.ndarray, row: np.ndarray, weight: np.ndarray) -> dict[str, Estimate]:
    """Return the measures that are defined for any labels; `row` is numbered from 0, the other arguments are as in `summarise`."""
    row_weight = np.bincount(row, weight)
    probability = expit(score)
    correct = np.where(score == 0, 0.5, (score > 0) == (label > 0.5))
    loss = np.bincount(row, weight * (np.logaddexp(0, score) - label * score)) / row_weight
    return {
        "accuracy": _mean_over_rows(correct, weight, row),
        "brier": _mean_over_rows((probability - label) ** 2, weight, row),
        "log_loss": Estimate(value=float(np.average(loss, weights=row_weight)), ci95=positive_mean_ci(loss, row_weight)),
        "rms_calibration_error": _rms_error(probability - label, weight, _bins(probability), row),
    }


def _bins(probability: np.ndarray) -> np.ndarray:
    bins: np.ndarray = np.minimum((probability * BINS).astype(int), BINS - 1)
    return bins


def _mean_over_rows(values: np.ndarray, weight: np.ndarray, row: np.ndarray) -> Estimate:
    """Return the weighted mean of values in [0, 1], clustered by row."""
    row_weight = np.bincount(row, weight)
    present = row_weight > 0
    means = np.bincount(row, weight * values)[present] / row_weight[present]
    binary = len(means) == len(values) and bool(np.isin(values, (0.0, 1.0)).all())
    mean = float(np.average(means, weights=row_weight[present]))
    return Estimate(value=mean, ci95=mean_ci(means, row_weight[present], binary=binary))


def summarise_pairs(scores: Sequence[float], labels: Sequence[float], rows: Sequence[str | int]) -> Heldout:
    """Evaluate Bradley-Terry scores, with sigmoid(r_first - r_second) as the probability that the first response is better.

    Each pair of a row's best response and another one is included in both orders, so half of the labels are 1. Rows have equal weight
    regardless of their number of responses.

    Args:
        scores, labels, rows: as in `summarise`, with exactly one label 1 per row.

    Returns:
        as `summarise`, over pairs, with pairwise_accuracy (ties count half) instead of accuracy and the two AUCs.
    """
    score, best, row = np.asarray(scores, np.float64), np.asarray(labels) > 0.5, np.asarray(rows)
    margins, ids, weights = [], [], []
    for texts in _texts_by_row(np.unique(row, return_inverse=True)[1]):
        others = score[texts[~best[texts]]]
        margins.append(score[texts[best[texts]][0]] - others)
        ids += [row[texts[0]]] * len(others)
        weights.append(np.full(len(others), 1 / len(others)))
    margin, weight = np.concatenate(margins), np.concatenate(weights)
    report = summarise(np.concatenate([margin, -margin]), np.repeat([1.0, 0.0], len(margin)), ids * 2, np.tile(weight, 2))
    kept = {name: value for name, value in report if name in report.model_fields_set - {"auc", "auc_within_row", "accuracy"}}
    return Heldout(**kept, pairwise_accuracy=report.accuracy)


def _texts_by_row(row: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each row's texts."""
    order = np.argsort(row, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(row[order])) + 1)


def _expected_error(probability: np.ndarray, label: np.ndarray, weight: np.ndarray, bins: np.ndarray) -> ExpectedError:
    """Return the expected calibration error, and that of labels sampled independently from the predictions."""

    def error(labels: np.ndarray) -> float:
        return float(np.abs(np.bincount(bins, weight * (probability - labels), BINS)).sum() / weight.sum())

    rng = np.random.default_rng(0)
    simulated = [error(rng.random(len(label)) < probability) for _ in range(SIMULATIONS)]
    calibrated = Level(mean=float(np.mean(simulated)), high=float(np.quantile(simulated, 0.95)))
    return ExpectedError(value=error(label), calibrated=calibrated)


def _rms_error(gap: np.ndarray, weight: np.ndarray, bins: np.ndarray, row: np.ndarray) -> Estimate:
    """Return the debiased root mean square calibration error over weighted bins.

    A bin's squared gap is estimated from pairs of different rows only, which makes it unbiased for any bin size (the debiased estimator of
    Kumar et al. 2019, arXiv 1909.10155, generalised to rows of several texts). Negative estimates, due to chance, are clipped to 0. Bins
    with a single row are excluded.

    The interval approximates the sum of squares by a scaled noncentral chi-square variable (mean from the variance over rows, scale from
    the variance in all directions and along the observed gaps) and contains all values not rejected at 5%. At 0, the lower limit, the
    whole 5% is in the upper tail; farther up it approaches half of it (a tail function: Puza and O'Neill 2006, Canadian Journal of
    Statistics 34).

    Args:
        gap: [texts], probability minus label.
    """
    cells, cell_of_text = np.unique(row * BINS + bins, return_inverse=True)
    cell_row, cell_bin = cells // BINS, cells % BINS
    sums, sizes = np.bincount(cell_of_text, weight * gap), np.bincount(cell_of_text, weight)
    total, squares = np.bincount(cell_bin, sizes, BINS), np.bincount(cell_bin, sizes**2, BINS)
    several = total**2 - squares > 1e-9 * np.maximum(total**2, 1e-300)
    if not several.any():
        return Estimate(value=None, ci95=None)
    share = np.where(several, total, 0.0) / total[several].sum()
    sum_gap = np.bincount(cell_bin, sums, BINS)
    pairs = sum_gap**2 - np.bincount(cell_bin, sums**2, BINS)
    square = float(share[several] @ (pairs[several] / (total**2 - squares)[several]))
    value = float(np.sqrt(max(square, 0.0)))
    if len(np.unique(cell_row)) < MIN_ROWS_CALIBRATION:
        return Estimate(value=value, ci95=None)
    mean_gap = np.where(several, sum_gap / np.where(several, total, 1.0), 0.0)
    residual = np.zeros((cell_row.max() + 1, BINS))
    scaled = (sums - sizes * mean_gap[cell_bin]) / np.where(several, total, 1.0)[cell_bin]
    residual[cell_row, cell_bin] = np.where(several[cell_bin], scaled, 0.0)
    # The sum of squares over a bin's rows underestimates its variance by the fraction of pairs within a row.
    correction = np.sqrt(total**2 / np.where(several, total**2 - squares, np.inf))
    spread = np.sqrt(np.outer(share, share)) * np.outer(correction, correction) * (residual.T @ residual)
    observed = np.sqrt(share) * mean_gap
    scale = float(((spread**2).sum() + observed @ spread @ observed) / max(np.trace(spread) + observed @ observed, 1e-300))
    if scale <= 0:
        return Estimate(value=value, ci95=None)
    freedom = float(np.trace(spread) / scale)
    low, high = _noncentral(max(square / scale + freedom, 0.0), freedom)
    return Estimate(value=value, ci95=(float(min(np.sqrt(low * scale), value)), float(max(np.sqrt(high * scale), value))))


def _noncentral(observed: float, freedom: float) -> tuple[float, float]:
    """Return the 95% interval of the noncentrality (at least 0) of a chi-square variable, given one observation."""
    tail = chi2.ppf(0.95, freedom)

    def below(noncentrality: float) -> float:
        """Return the probability assigned to the lower tail."""
        return 0.025 * -math.expm1(-noncentrality / math.sqrt(2 * freedom))

    def too_small(noncentrality: float) -> float:
        return float(chndtr(observed, freedom, noncentrality)) - below(noncentrality)

    def too_large(noncentrality: float) -> float:
        return 1 - float(chndtr(observed, freedom, noncentrality)) - (0.05 - below(noncentrality))

    limit = 10 * (observed + freedom + 20)
    low = 0.0 if observed <= tail or chdtrc(freedom, observed) >= 0.05 else brentq(too_large, 0.0, limit)
    high = 0.0 if too_small(1e-9) <= 0 else brentq(too_small, 1e-9, limit)
    return low, high


def _bin(number: int, inside: np.ndarray, probability: np.ndarray, label: np.ndarray, weight: np.ndarray, row: np.ndarray) -> Bin:
    low, high = number / BINS, (number + 1) / BINS
    if not inside.any():
        return Bin(low=low, high=high, n=0, predicted=None, observed=None, ci95=None)
    predicted = float(np.average(probability[inside], weights=weight[inside]))
    observed = _mean_over_rows(label[inside], weight[inside], row[inside])
    return Bin(low=low, high=high, n=int(inside.sum()), predicted=predicted, observed=observed.value, ci95=observed.ci95)


def table(report: Heldout, title: str) -> Table:
    """Return a report's measures with their intervals as a terminal table."""
    shown = Table("measure", "value", "95% interval", title=title)
    names = {
        "pairwise_accuracy": "pairwise accuracy",
        "auc": "ROC-AUC",
        "auc_within_row": "ROC-AUC within a row",
        "accuracy": "accuracy at 0",
        "brier": "Brier score",
        "log_loss": "log loss, nats",
        "rms_calibration_error": "calibration error, root mean square",
    }
    for key, name in names.items():
        if key not in report.model_fields_set:
            continue
        entry: Estimate | None = getattr(report, key)
        if entry is None:
            shown.add_row(name, "none", "one label only")
        elif entry.value is None:
            shown.add_row(name, "none", TOO_FEW)
        else:
            shown.add_row(name, f"{entry.value:.3f}", _format_interval(entry.ci95))
    if report.ece is not None and (chance := report.ece.calibrated) is not None:
        level = f"calibrated: {chance.mean:.3f}, up to {chance.high:.3f}"
        shown.add_row("expected calibration error", f"{report.ece.value:.3f}", level)
    shown.add_row("share of label 1", f"{report.base_rate:.3f}", f"{report.n:,} texts of {report.rows:,} rows")
    return shown


def _format_interval(interval: Interval | None) -> str:
    return TOO_FEW if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
