"""How good predicted probabilities are: ROC-AUC, accuracy, Brier score, calibration error, and the picture of it.

Intervals are over rows, as a row's texts are not independent (docs/statistics.md). The expected calibration error has none: it is above 0
for a perfectly calibrated model, too, by an amount that hangs on the number of texts, and is told beside that amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtrc, chndtr, expit
from scipy.stats import chi2

from rlsys.evaluation.statistics import TOO_FEW, Interval, mean_ci, positive_mean_ci, roc_area
from rlsys.system.terminal import Table

BINS = 10
"""Of equal width, over probabilities 0 to 1; a bin holds its lower edge, and the last one both."""
FEWEST_ROWS = 100
"""Rows that an interval of the calibration error needs."""
SIMULATED = 1000
"""Sets of labels that are drawn to see what a calibrated model would show."""
Report = dict[str, Any]


def summarise(
    scores: Sequence[float], labels: Sequence[float], rows: Sequence[str | int], weights: Sequence[float] | None = None
) -> Report:
    """Judge logits against what was true.

    Args:
        scores: logits; the probability is sigmoid(score). Finite.
        labels: 1 or 0 each. rows: id of the row that each belongs to. weights: positive, None: all equal.

    Returns:
        n, rows, base_rate (share of label 1);
        auc, accuracy (of the threshold 0; a score of 0 counts half), brier, log_loss (nats), rms_calibration_error: {"value", "ci95":
            [low, high] or None where there are too few rows} each, auc None where only one label occurs;
        ece: {"value", "calibrated": {"mean", "high"}}: the expected calibration error, and what it would come to if each label were drawn
            with the predicted probability: on average, and in all but 5% of the cases;
        auc_within_row: the mean over rows with both labels of their own AUC: whether the right ones of a row are told from its wrong ones,
            which is what a guided vote lives on; with `rows`, the number of such rows. None without any;
        table: one entry per bin: low, high, n, predicted (mean probability), observed (share of label 1) and its interval ci95, the latter
            three None for an empty bin, ci95 for one of few rows as well.

    Raises:
        ValueError: nothing to judge, unequal lengths, or scores that are not finite.
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
    of_row = np.bincount(row, weight)
    probability = expit(score)
    bins = _bins(probability)
    area, area_ci = roc_area(score, label > 0.5, row, weight)
    within = [found for i in _runs(row) if (found := roc_area(score[i], label[i] > 0.5, None, weight[i])[0]) is not None]
    return {
        "n": len(score),
        "rows": len(of_row),
        "base_rate": float(np.average(label, weights=weight)),
        "auc": None if area is None else {"value": area, "ci95": area_ci},
        **measures(score, label, row, weight),
        "ece": _expected_error(probability, label, weight, bins),
        "auc_within_row": {"value": float(np.mean(within)), "ci95": mean_ci(within), "rows": len(within)} if within else None,
        "table": [_bin(number, bins == number, probability, label, weight, row) for number in range(BINS)],
    }


def measures(score: np.ndarray, label: np.ndarray, row: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Those of the report that are {"value", "ci95"} whatever the labels; `row`: numbers from 0, all others as in `summarise`."""
    of_row = np.bincount(row, weight)
    probability = expit(score)
    correct = np.where(score == 0, 0.5, (score > 0) == (label > 0.5))
    loss = np.bincount(row, weight * (np.logaddexp(0, score) - label * score)) / of_row
    return {
        "accuracy": _mean_over_rows(correct, weight, row),
        "brier": _mean_over_rows((probability - label) ** 2, weight, row),
        "log_loss": {"value": float(np.average(loss, weights=of_row)), "ci95": positive_mean_ci(loss, of_row)},
        "rms_calibration_error": _rms_error(probability - label, weight, _bins(probability), row),
    }


def _bins(probability: np.ndarray) -> np.ndarray:
    return np.minimum((probability * BINS).astype(int), BINS - 1)


def _mean_over_rows(values: np.ndarray, weight: np.ndarray, row: np.ndarray) -> dict[str, Any]:
    """The weighted mean of values in [0, 1], a row's counting together."""
    of_row = np.bincount(row, weight)
    some = of_row > 0
    means = np.bincount(row, weight * values)[some] / of_row[some]
    ones = len(means) == len(values) and bool(np.isin(values, (0.0, 1.0)).all())
    return {"value": float(np.average(means, weights=of_row[some])), "ci95": mean_ci(means, of_row[some], ones=ones)}


def summarise_pairs(scores: Sequence[float], labels: Sequence[float], rows: Sequence[str | int]) -> Report:
    """Judge Bradley-Terry scores: sigmoid(r_first - r_second) as the probability that the first response is the better one.

    Each pair of a row's best response and another stands in both orders, so that half of all labels are 1; a row counts the same however
    many responses it has.

    Args:
        scores, labels, rows: as in `summarise`, one label 1 in every row.

    Returns:
        as `summarise`, over pairs, with pairwise_accuracy (ties count half) in the place of accuracy and of both AUCs.
    """
    score, best, row = np.asarray(scores, np.float64), np.asarray(labels) > 0.5, np.asarray(rows)
    margins, ids, weights = [], [], []
    for places in _runs(np.unique(row, return_inverse=True)[1]):
        others = score[places[~best[places]]]
        margins.append(score[places[best[places]][0]] - others)
        ids += [row[places[0]]] * len(others)
        weights.append(np.full(len(others), 1 / len(others)))
    margin, weight = np.concatenate(margins), np.concatenate(weights)
    told = summarise(np.concatenate([margin, -margin]), np.repeat([1.0, 0.0], len(margin)), ids * 2, np.tile(weight, 2))
    del told["auc"], told["auc_within_row"]
    return {"pairwise_accuracy": told.pop("accuracy"), **told}


def _runs(row: np.ndarray) -> list[np.ndarray]:
    """The places of each row's texts."""
    order = np.argsort(row, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(row[order])) + 1)


def _expected_error(probability: np.ndarray, label: np.ndarray, weight: np.ndarray, bins: np.ndarray) -> dict[str, Any]:
    """The expected calibration error, and that of labels drawn from the predictions themselves, each by itself."""

    def error(labels: np.ndarray) -> float:
        return float(np.abs(np.bincount(bins, weight * (probability - labels), BINS)).sum() / weight.sum())

    rng = np.random.default_rng(0)
    drawn = [error(rng.random(len(label)) < probability) for _ in range(SIMULATED)]
    return {"value": error(label), "calibrated": {"mean": float(np.mean(drawn)), "high": float(np.quantile(drawn, 0.95))}}


def _rms_error(gap: np.ndarray, weight: np.ndarray, bins: np.ndarray, row: np.ndarray) -> dict[str, Any]:
    """Root mean square over bins, by their weight, of predicted minus observed share, without the part that is chance.

    A bin's squared gap is estimated from pairs of different rows only, so that it is right on average whatever the size of the bin (the
    debiased estimator of Kumar et al. 2019, arXiv 1909.10155, for rows of several texts); below 0, which is chance, it counts as 0. Bins of
    one row cannot tell and are left out.

    The interval takes the sum of the squares as a multiple of a noncentral chi-square variable (its mean from the spread over rows, its
    scale from that in all directions and in the one of the gaps seen) and holds all values that are not rejected at 5%. At 0, below which
    there is nothing, all 5% are on the upper side, and by and by half of it farther up (a tail function: Puza and O'Neill 2006, Canadian
    Journal of Statistics 34).

    Args:
        gap: [texts], probability minus label.
    """
    places = np.unique(row * BINS + bins, return_inverse=True)
    of_row, of_bin = places[0] // BINS, places[0] % BINS
    sums, sizes = np.bincount(places[1], weight * gap), np.bincount(places[1], weight)
    total, squares = np.bincount(of_bin, sizes, BINS), np.bincount(of_bin, sizes**2, BINS)
    several = total**2 - squares > 1e-9 * np.maximum(total**2, 1e-300)
    if not several.any():
        return {"value": None, "ci95": None}
    share = np.where(several, total, 0.0) / total[several].sum()
    sum_gap = np.bincount(of_bin, sums, BINS)
    pairs = sum_gap**2 - np.bincount(of_bin, sums**2, BINS)
    square = float(share[several] @ (pairs[several] / (total**2 - squares)[several]))
    value = float(np.sqrt(max(square, 0.0)))
    rows = len(np.unique(of_row))
    if rows < FEWEST_ROWS:
        return {"value": value, "ci95": None}
    mean_gap = np.where(several, sum_gap / np.where(several, total, 1.0), 0.0)
    residual = np.zeros((of_row.max() + 1, BINS))
    residual[of_row, of_bin] = np.where(several[of_bin], (sums - sizes * mean_gap[of_bin]) / np.where(several, total, 1.0)[of_bin], 0.0)
    # Squares of a bin's rows add up to less than its variance, by the share of the pairs that are of one row.
    grow = np.sqrt(total**2 / np.where(several, total**2 - squares, np.inf))
    spread = np.sqrt(np.outer(share, share)) * np.outer(grow, grow) * (residual.T @ residual)
    seen = np.sqrt(share) * mean_gap
    scale = float(((spread**2).sum() + seen @ spread @ seen) / max(np.trace(spread) + seen @ seen, 1e-300))
    if scale <= 0:
        return {"value": value, "ci95": None}
    freedom = float(np.trace(spread) / scale)
    low, high = _noncentral(max(square / scale + freedom, 0.0), freedom)
    return {"value": value, "ci95": [float(min(np.sqrt(low * scale), value)), float(max(np.sqrt(high * scale), value))]}


def _noncentral(found: float, freedom: float) -> tuple[float, float]:
    """95% interval of a chi-square variable's noncentrality, at least 0, of which `found` was seen."""
    tail = chi2.ppf(0.95, freedom)

    def below(noncentrality: float) -> float:
        """The probability that is spent on the lower side."""
        return 0.025 * -np.expm1(-noncentrality / np.sqrt(2 * freedom))

    def too_small(noncentrality: float) -> float:
        return chndtr(found, freedom, noncentrality) - below(noncentrality)

    def too_large(noncentrality: float) -> float:
        return 1 - chndtr(found, freedom, noncentrality) - (0.05 - below(noncentrality))

    most = 10 * (found + freedom + 20)
    low = 0.0 if found <= tail or chdtrc(freedom, found) >= 0.05 else brentq(too_large, 0.0, most)
    high = 0.0 if too_small(1e-9) <= 0 else brentq(too_small, 1e-9, most)
    return low, high


def _bin(
    number: int, inside: np.ndarray, probability: np.ndarray, label: np.ndarray, weight: np.ndarray, row: np.ndarray
) -> dict[str, Any]:
    entry = {"low": number / BINS, "high": (number + 1) / BINS, "n": int(inside.sum()), "predicted": None, "observed": None, "ci95": None}
    if entry["n"]:
        entry["predicted"] = float(np.average(probability[inside], weights=weight[inside]))
        observed = _mean_over_rows(label[inside], weight[inside], row[inside])
        entry |= {"observed": observed["value"], "ci95": observed["ci95"]}
    return entry


def table(told: Report, title: str) -> Table:
    """The measures of a report with their intervals, for a terminal."""
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
        if key not in told:
            continue
        entry = told[key]
        if entry is None:
            shown.add_row(name, "none", "one label only")
        elif entry["value"] is None:
            shown.add_row(name, "none", TOO_FEW)
        else:
            shown.add_row(name, f"{entry['value']:.3f}", _words(entry["ci95"]))
    chance = told["ece"]["calibrated"]
    level = f"calibrated: {chance['mean']:.3f}, up to {chance['high']:.3f}"
    shown.add_row("expected calibration error", f"{told['ece']['value']:.3f}", level)
    shown.add_row("share of label 1", f"{told['base_rate']:.3f}", f"{told['n']:,} texts of {told['rows']:,} rows")
    return shown


def _words(interval: Interval | None) -> str:
    return TOO_FEW if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def plot(told: Report, path: Path, title: str, event: str) -> None:
    """Write the reliability diagram as PNG: predicted against observed share of `event` by bin, and how many texts each bin holds."""
    from matplotlib.figure import Figure

    filled = [entry for entry in told["table"] if entry["n"]]
    predicted = [entry["predicted"] for entry in filled]
    observed = np.array([entry["observed"] for entry in filled])
    # Rounding may put an observed share a hair outside its interval.
    bounds = [entry["ci95"] or (o, o) for o, entry in zip(observed, filled)]
    reach = np.maximum([[o - low, high - o] for o, (low, high) in zip(observed, bounds)], 0).T
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], "--", color="0.6", label="perfectly calibrated")
    upper.axhline(told["base_rate"], color="0.8", lw=1, label=f"base rate {told['base_rate']:.2f}")
    upper.errorbar(predicted, observed, yerr=reach, fmt="o-", color="C0", capsize=3, label="held-out, with 95% interval")
    upper.set(ylabel=f"observed share: {event}", xlim=(0, 1), ylim=(0, 1))
    first = [f"{name} {told[key]['value']:.3f}, " for key, name in (("auc", "AUC"), ("pairwise_accuracy", "accuracy")) if told.get(key)]
    upper.set_title(
        f"{title}\n{''.join(first)}Brier {told['brier']['value']:.3f}, calibration error {told['ece']['value']:.3f}", fontsize=11
    )
    upper.legend(loc="upper left", frameon=False)
    middles = [(entry["low"] + entry["high"]) / 2 for entry in told["table"]]
    lower.bar(middles, [entry["n"] for entry in told["table"]], width=0.9 / BINS, color="C0", alpha=0.6)
    lower.set(xlabel=f"predicted probability: {event}", ylabel="number in the bin")
    figure.savefig(path, dpi=150)
