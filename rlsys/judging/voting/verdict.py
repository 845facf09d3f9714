"""Verdicts from totals: ties, the best response, its margin, and accuracy against coverage when small margins are withheld."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlsys.judging.voting.samples import Bools, Floats
from rlsys.judging.voting.strategy import Outcome
from rlsys.prompts.rendering import seed_for

ROUNDING = 1e-12
"""Totals within this share of the row's largest are equal, so that the order of summation does not break ties."""

NO_VERDICT = -1


def tied(totals: Floats) -> Bools:
    """[..., n]: whether a response has the highest total, up to rounding; False if totals are NaN."""
    highest: Floats = totals.max(axis=-1, keepdims=True)
    slack: Floats = ROUNDING * np.abs(totals).max(axis=-1, keepdims=True)
    return totals >= highest - slack


def best(outcome: Outcome, keys: Sequence[tuple[str | int, ...]]) -> NDArray[np.int64]:
    """Return the index of the best response, [rows, ...] for totals [rows, ..., n]; -1 if nothing parsed or the strategy abstained.

    Ties are broken at random, depending only on the row's key, for example (seed, record.id), and the position in the row's further
    dimensions.

    Raises:
        ValueError: the number of keys is not the number of rows.
    """
    top = tied(outcome.totals)
    if top.ndim < 2 or len(keys) != len(top):
        raise ValueError(f"totals of shape {list(top.shape)}, {len(keys)} keys: expected [rows, ..., n] and a key per row.")
    choice = top.argmax(axis=-1)
    several = (top.sum(axis=-1) > 1).any(axis=tuple(range(1, top.ndim - 1)))
    for row in np.flatnonzero(several):
        shuffle = np.random.default_rng(seed_for("tie", *keys[row])).random(top[row].shape)
        choice[row] = np.where(top[row], shuffle, -1.0).argmax(axis=-1)
    return np.where(top.any(axis=-1) & ~outcome.abstained, choice, NO_VERDICT)


def margin(totals: Floats) -> Floats:
    """[...]: the highest total minus the second; NaN if nothing parsed, infinite for a single response."""
    if totals.shape[-1] == 1:
        return np.where(np.isnan(totals[..., 0]), np.nan, np.inf)
    top = np.partition(totals, -2, axis=-1)
    return top[..., -1] - top[..., -2]


class Coverage(NamedTuple):
    """Accuracy of the verdicts that remain when those with smaller margins are withheld; one point per distinct margin."""

    threshold: Floats
    """Minimum margin for a verdict, descending."""
    coverage: Floats
    """Share of all rows with a verdict, (0, 1], ascending."""
    accuracy: Floats
    """Share of those verdicts that are correct, [0, 1]."""


def coverage_curve(margins: Floats, correct: Bools | Floats) -> Coverage:
    """Compute accuracy against coverage (selective prediction, arXiv 1705.08500).

    Args:
        margins: [rows], by `margin` of `Outcome.levels` (sums over different numbers of samples are not comparable). NaN means no verdict
            at any threshold; such rows still count.
        correct: [rows], whether the row's verdict is correct, or its probability of being correct, in [0, 1], if a tie was broken.

    Raises:
        ValueError: the lengths differ.
    """
    margins, correct = np.asarray(margins, np.float64), np.asarray(correct, np.float64)
    if margins.ndim != 1 or margins.shape != correct.shape:
        raise ValueError(f"margins {list(margins.shape)}, correct {list(correct.shape)}: expected one of each per row.")
    known = np.flatnonzero(~np.isnan(margins))
    order = known[np.argsort(-margins[known], kind="stable")]
    last = np.flatnonzero(np.append(np.diff(margins[order]) != 0, True)) if order.size else order
    given = last + 1
    return Coverage(margins[order][last], given / max(margins.size, 1), np.cumsum(correct[order])[last] / given)
