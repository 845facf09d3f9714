"""Score a benchmark: figures per resample, their confidence intervals, and baselines that need no judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.documents.core import Interval
from rlsys.evaluation.benchmarks.core import Benchmark
from rlsys.evaluation.benchmarks.schemes import OVERALL, Figures
from rlsys.evaluation.benchmarks.verdicts import verdicts
from rlsys.judging.voting.verdict import NO_VERDICT


@dataclass(frozen=True)
class Score:
    """The figures of a benchmark, each float64 [resamples]."""

    overall: np.ndarray
    groups: Figures
    """By section and by subset."""
    others: Figures
    """Other published figures, and `verdicts`: the fraction of items with a verdict. All other figures count a missing verdict as wrong."""
    n: dict[str, int]
    """Number of clusters in "overall" and in each group."""


def score(benchmark: Benchmark, totals: Sequence[np.ndarray], seed: int = 0) -> Score:
    """Compute the published figures from `totals`.

    Args:
        totals: for each item of `benchmark.items`, float64 [resamples, n] in the record's own order. A row with NaN has no verdict
            (nothing parsed, or the strategy abstained) and counts as wrong.
        seed: for the shuffles that break ties for the highest total.

    Raises:
        ValueError: the totals have the wrong shape.
    """
    judged = verdicts(benchmark, totals, seed)
    figures = benchmark.scheme.values(judged)
    given = judged.mean(judged.pick != NO_VERDICT).mean(axis=1)
    groups = {name: figures[name] for name in benchmark.groups if name in figures}
    others = {name: array for name, array in figures.items() if name != OVERALL and name not in groups} | {"verdicts": given}
    n = {OVERALL: len(benchmark.clusters)} | {name: len(benchmark.groups[name]) for name in groups}
    return Score(figures[OVERALL], groups, others, n)


def interval(benchmark: Benchmark, totals: Sequence[np.ndarray], seed: int = 0) -> dict[str, Interval | None]:
    """Return the 95% interval of each figure's mean over resamples, by name ("overall", groups, other figures that are means).

    Intervals are over clusters, stratified by subset where the figure averages subsets. None if there are too few clusters or the figure
    is undefined.
    """
    return benchmark.scheme.intervals(verdicts(benchmark, totals, seed))


def baselines(benchmark: Benchmark, resamples: int = 200, seed: int = 0) -> dict[str, Score | None]:
    """Score baselines: `chance` (random totals), `first` (the response shown or listed first), `longer` (in characters).

    Ties for the highest total are broken at random in each resample, so their mean shares credit. `first` is None if it is meaningless:
    the format lists the best response first, or no item has two responses.
    """
    rng = np.random.default_rng(seed)
    items = benchmark.items
    random = [rng.random((resamples, item.record.n)) for item in items]
    lengths = [_repeated([float(len(response)) for response in item.record.responses], resamples) for item in items]
    places = [_repeated([float(i == (item.order or (0,))[0]) for i in range(item.record.n)], resamples) for item in items]
    has_first = not benchmark.best_first and any(item.record.n > 1 for item in items)
    return {
        "chance": score(benchmark, random, seed=seed),
        "first": score(benchmark, places, seed=seed) if has_first else None,
        "longer": score(benchmark, lengths, seed=seed),
    }


def _repeated(totals: list[float], resamples: int) -> np.ndarray:
    return np.broadcast_to(np.array(totals), (resamples, len(totals)))
