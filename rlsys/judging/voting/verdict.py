"""From totals to a verdict: ties, the best response, the margin, and what abstaining below a margin buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlsys.judging.voting.samples import Bools, Floats
from rlsys.judging.voting.strategy import Outcome
from rlsys.prompts.rendering import seed_for

ROUNDING = 1e-12
"""Totals that differ by less than this share of the row's largest are equal: the order of a sum must not break a tie."""

NO_VERDICT = -1


def tied(totals: Floats) -> Bools:
    """[..., n]: the responses at the top, to rounding; none where totals are NaN."""
    slack = ROUNDING * np.abs(totals).max(axis=-1, keepdims=True)
    return totals >= totals.max(axis=-1, keepdims=True) - slack


def best(outcome: Outcome, keys: Sequence[tuple[str | int, ...]]) -> NDArray[np.int64]:
    """[rows, ...]: index of the best response of outcomes [rows, ..., n]; -1 where nothing parsed or the strategy abstained.

    A tie at the top is broken by a shuffle that depends on the row's key alone, for example (seed, record.id), and on where in the
    row's further dimensions it stands.

    Raises:
        ValueError: not one key per row.
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
    """[...]: the best total minus the second; NaN where nothing parsed, infinite for a single response, which has no rival."""
    if totals.shape[-1] == 1:
        return np.where(np.isnan(totals[..., 0]), np.nan, np.inf)
    top = np.partition(totals, -2, axis=-1)
    return top[..., -1] - top[..., -2]


class Coverage(NamedTuple):
    """Accuracy of the verdicts that are given when those of a smaller margin are withheld; one point per distinct margin."""

    threshold: Floats
    """Smallest margin that gets a verdict, descending."""
    coverage: Floats
    """Share of all rows that get one, (0, 1], ascending."""
    accuracy: Floats
    """Share of those that is right, [0, 1]."""


def coverage_curve(margins: Floats, correct: Bools | Floats) -> Coverage:
    """The whole curve of coverage against accuracy (selective prediction, arXiv 1705.08500).

    Args:
        margins: [rows], by `margin` of `Outcome.levels` (sums over different numbers of samples do not compare). NaN: no verdict at any
            threshold, but counted among the rows.
        correct: [rows], whether the row's verdict is right (or its chance of it, in [0, 1], where a tie was broken).

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
