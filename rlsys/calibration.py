"""How good predicted probabilities are: ROC-AUC, accuracy, Brier score, expected calibration error, and the picture of it.

Intervals are 95% bootstrap intervals over rows (a row's texts are not independent), drawn with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.screen import Table
from rlsys.statistics import mean_ci, proportion_ci

BINS = 10
"""Of equal width, over probabilities 0 to 1; a bin holds its lower edge, and the last one both."""
RESAMPLES = 1000
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
        auc, accuracy (of the threshold 0; a score of 0 counts half), brier, log_loss (nats), ece: {"value", "ci95": [low, high]} each, auc
            None where only one label occurs;
        auc_within_row: the same, the mean over rows with both labels of their own AUC: whether the right ones of a row are told from its
            wrong ones, which is what a guided vote lives on; with `rows`, the number of such rows. None without any;
        table: one entry per bin: low, high, n, predicted (mean probability), observed (share of label 1) and its interval ci95 (Wilson's,
            with as many trials as the bin has rows), the latter three None for an empty bin.

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
    ids, row = np.unique(np.asarray(rows), return_inverse=True)
    probability = 1 / (1 + np.exp(-score))
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    per_text = {
        "accuracy": np.where(score == 0, 0.5, (score > 0) == (label > 0.5)),
        "brier": (probability - label) ** 2,
        "log_loss": np.logaddexp(0, score) - label * score,
    }

    def measure(w: np.ndarray) -> dict[str, float]:
        gap = np.abs(np.bincount(bins, w * (probability - label), BINS)).sum()
        means = {name: np.average(values, weights=w) for name, values in per_text.items()}
        return {"auc": _auc(label, score, w), **means, "ece": gap / w.sum()}

    measured, intervals = _bootstrap(measure, weight, row, len(ids))
    told = {name: {"value": value, "ci95": intervals[name]} for name, value in measured.items()}
    within = [auc for i in _runs(row) if (auc := _auc(label[i], score[i], weight[i])) == auc]
    return {
        "n": len(score),
        "rows": len(ids),
        "base_rate": float(np.average(label, weights=weight)),
        **{name: None if np.isnan(entry["value"]) else entry for name, entry in told.items()},
        "auc_within_row": {"value": float(np.mean(within)), "ci95": list(mean_ci(within)), "rows": len(within)} if within else None,
        "table": [_bin(number, bins == number, probability, label, weight, row) for number in range(BINS)],
    }


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


def _auc(label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """The weighted chance that a text of label 1 stands above one of label 0, ties half (Mann and Whitney); nan without either."""
    places = np.unique(score, return_inverse=True)[1]
    ones, zeros = (np.bincount(places, weight * (label == which)) for which in (1.0, 0.0))
    pairs = ones.sum() * zeros.sum()
    below = np.cumsum(zeros) - zeros
    return float(ones @ (below + zeros / 2) / pairs) if pairs else float("nan")


def _runs(row: np.ndarray) -> list[np.ndarray]:
    """The places of each row's texts."""
    order = np.argsort(row, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(row[order])) + 1)


def _bootstrap(
    measure: Callable[[np.ndarray], dict[str, float]], weight: np.ndarray, row: np.ndarray, rows: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The measures, and their percentile intervals over resamples of whole rows; where one is undefined it is left out."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, rows, rows), minlength=rows)
        drawn.append(measure(weight * times[row]))
    measured = {name: float(value) for name, value in measure(weight).items()}
    intervals = {}
    for name in measured:
        values = np.array([one[name] for one in drawn])
        values = values[~np.isnan(values)]
        intervals[name] = [float(bound) for bound in np.percentile(values, [2.5, 97.5])] if len(values) else [float("nan")] * 2
    return measured, intervals


def _bin(
    number: int, inside: np.ndarray, probability: np.ndarray, label: np.ndarray, weight: np.ndarray, row: np.ndarray
) -> dict[str, Any]:
    rows = len(np.unique(row[inside]))
    entry = {"low": number / BINS, "high": (number + 1) / BINS, "n": int(inside.sum()), "predicted": None, "observed": None, "ci95": None}
    if rows:
        entry["predicted"] = float(np.average(probability[inside], weights=weight[inside]))
        entry["observed"] = float(np.average(label[inside], weights=weight[inside]))
        entry["ci95"] = list(proportion_ci(round(entry["observed"] * rows), rows))
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
        "ece": "expected calibration error",
    }
    for key, name in names.items():
        if key not in told:
            continue
        entry = told[key]
        if entry is None:
            shown.add_row(name, "none", "one label only")
        else:
            shown.add_row(name, f"{entry['value']:.3f}", f"{entry['ci95'][0]:.3f} to {entry['ci95'][1]:.3f}")
    shown.add_row("share of label 1", f"{told['base_rate']:.3f}", f"{told['n']:,} texts of {told['rows']:,} rows")
    return shown


def plot(told: Report, path: Path, title: str, event: str) -> None:
    """Write the reliability diagram as PNG: predicted against observed share of `event` by bin, and how many texts each bin holds."""
    from matplotlib.figure import Figure

    filled = [entry for entry in told["table"] if entry["n"]]
    predicted = [entry["predicted"] for entry in filled]
    observed = np.array([entry["observed"] for entry in filled])
    # Rounding may put an observed share a hair outside its interval.
    reach = np.maximum([[o - entry["ci95"][0], entry["ci95"][1] - o] for o, entry in zip(observed, filled)], 0).T
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
