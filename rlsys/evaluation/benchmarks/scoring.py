"""Scoring a benchmark: figures per draw, their intervals, and the figures of what needs no judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.evaluation.benchmarks.core import Benchmark
from rlsys.evaluation.benchmarks.schemes import OVERALL, Figures
from rlsys.evaluation.benchmarks.verdicts import verdicts
from rlsys.evaluation.statistics import Interval
from rlsys.judging.voting.verdict import NO_VERDICT


@dataclass(frozen=True)
class Score:
    """The figures of a benchmark, each float64 [draws]."""

    overall: np.ndarray
    groups: Figures
    """By section and by subset."""
    others: Figures
    """What else was published, and `verdicts`: the share of items that got a verdict. No verdict counts as wrong in every other figure."""
    n: dict[str, int]
    """Units behind "overall" and each group."""


def score(benchmark: Benchmark, totals: Sequence[np.ndarray], units: np.ndarray | None = None, seed: int = 0) -> Score:
    """The published figures of `totals`.

    Args:
        totals: per item of `benchmark.items` float64 [draws, n], in the record's own order. A row with NaN is no verdict (nothing parsed,
            or abstained), which counts as wrong.
        units: int64, indices of the units to score, with repetitions in a resample; None: all.
        seed: of the shuffles by which ties at the top are broken.

    Raises:
        ValueError: totals of another shape; no units, or one that there is not.
    """
    size = len(benchmark.units)
    if units is not None and (not len(units) or min(units) < 0 or max(units) >= size):
        raise ValueError(f"benchmark {benchmark.name}: expected indices of its {size} units, at least one; found {units}.")
    counts = np.ones(size, dtype=np.int64) if units is None else np.bincount(units, minlength=size)
    judged = verdicts(benchmark, totals, seed)
    figures = benchmark.scheme.values(judged, counts)
    given = judged.mean(judged.pick != NO_VERDICT) @ counts / counts.sum()
    groups = {name: figures[name] for name in benchmark.groups if name in figures}
    others = {name: array for name, array in figures.items() if name != OVERALL and name not in groups} | {"verdicts": given}
    n = {OVERALL: int(counts.sum())} | {name: int(counts[benchmark.groups[name]].sum()) for name in groups}
    return Score(figures[OVERALL], groups, others, n)


def interval(benchmark: Benchmark, totals: Sequence[np.ndarray], seed: int = 0) -> dict[str, Interval | None]:
    """95% interval of the mean over draws of each figure, by name ("overall", groups, others that are means).

    Over units, within subsets where the figure is a mean over these. None where there are too few units, or the figure is undefined.
    """
    return benchmark.scheme.intervals(verdicts(benchmark, totals, seed))


def baselines(benchmark: Benchmark, draws: int = 200, seed: int = 0) -> dict[str, Score | None]:
    """The same figures without judging: `chance` (random totals), `first` (the response shown or listed first), `longer` (in characters).

    Ties at the top are broken anew in each of the `draws`, so the mean over draws shares them. `first` is None where there is no first: the
    format lists the best response first, or no item has two responses.
    """
    rng = np.random.default_rng(seed)
    items = benchmark.items
    random = [rng.random((draws, item.record.n)) for item in items]
    lengths = [_repeated([float(len(response)) for response in item.record.responses], draws) for item in items]
    places = [_repeated([float(i == (item.order or (0,))[0]) for i in range(item.record.n)], draws) for item in items]
    has_first = not benchmark.best_first and any(item.record.n > 1 for item in items)
    return {
        "chance": score(benchmark, random, seed=seed),
        "first": score(benchmark, places, seed=seed) if has_first else None,
        "longer": score(benchmark, lengths, seed=seed),
    }


def _repeated(totals: list[float], draws: int) -> np.ndarray:
    return np.broadcast_to(np.array(totals), (draws, len(totals)))
