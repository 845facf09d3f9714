"""Scoring schemes: from verdicts to figures, over any resample of the units.

A resample is given by counts: how often each unit is in it. `values` gives every figure per draw over one resample; `intervals` the 95%
interval over units of each figure's mean over draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from scipy.stats import rankdata

from rlsys.evaluation.benchmarks.core import Benchmark
from rlsys.evaluation.benchmarks.verdicts import Verdicts
from rlsys.evaluation.statistics import Interval, mean_ci, roc_area

Figures = dict[str, np.ndarray]
"""Figure name -> float64, one value per draw or per resample. "overall" and the groups that have units are always there."""

OVERALL = "overall"


class Scheme(Protocol):
    """How a benchmark's figures come from its verdicts."""

    def values(self, verdicts: Verdicts, counts: np.ndarray) -> Figures:
        """Every figure [draws] over the resample `counts`, int64 [units]."""
        ...

    def intervals(self, verdicts: Verdicts) -> dict[str, Interval | None]:
        """Of the mean over draws of each figure that is a mean over units; None where there are too few of them."""
        ...


def accuracy(verdicts: Verdicts) -> Figures:
    """The share of a unit's items that were judged right."""
    return {OVERALL: verdicts.mean(verdicts.right)}


def no_extras(verdicts: Verdicts, counts: np.ndarray) -> Figures:
    return {}


@dataclass(frozen=True)
class Means:
    """Figures that are means over subsets of means over units. A subset without a unit in the resample is left out."""

    outcomes: Callable[[Verdicts], Figures] = accuracy
    """float64 [draws, units] by figure name. The groups are figures of "overall"; what else there is has its overall mean only."""
    overall: Literal["units", "subsets", "sections"] = "units"
    """What the overall mean is the unweighted mean of."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """The weight of a subset within its section; of one that is not named: its number of units."""
    extras: Callable[[Verdicts, np.ndarray], Figures] = no_extras
    """Published figures that are no means over units, [draws] over one resample; they have no interval."""

    def values(self, verdicts: Verdicts, counts: np.ndarray) -> Figures:
        figures = self._combined(verdicts.benchmark, self.outcomes(verdicts), counts[None])
        return {name: array[:, 0] for name, array in figures.items()} | self.extras(verdicts, counts)

    def intervals(self, verdicts: Verdicts) -> dict[str, Interval | None]:
        benchmark = verdicts.benchmark
        subsets = np.unique([unit.subset for unit in benchmark.units], return_inverse=True)[1]
        everything = np.arange(len(benchmark.units))
        found: dict[str, Interval | None] = {}
        for figure, outcomes in self.outcomes(verdicts).items():
            values = outcomes.mean(axis=0)
            ones = bool(np.isin(values, (0.0, 1.0)).all())
            for name, members in {figure: everything, **(benchmark.groups if figure == OVERALL else {})}.items():
                weights = self._weights(benchmark, members, name == figure)
                strata = np.unique(subsets[members], return_inverse=True)[1]
                span = (min(0.0, float(values.min())), max(1.0, float(values.max())))
                found[name] = mean_ci(values[members], weights, strata if strata.any() else None, span, ones)
        return found

    def _weights(self, benchmark: Benchmark, members: np.ndarray, overall: bool) -> np.ndarray:
        """What each of a group's units weighs in its figure."""
        units = [benchmark.units[member] for member in members]
        sizes = Counter(unit.subset for unit in units)
        of_subset = {subset: self.weights.get(subset, size) for subset, size in sizes.items()}
        if overall and self.overall == "units":
            of_subset = dict(sizes)
        elif overall and self.overall == "subsets":
            of_subset = dict.fromkeys(sizes, 1.0)
        elif overall:
            section_of = {unit.subset: unit.section for unit in units}
            sums: Counter[str] = Counter()
            for subset, weight in of_subset.items():
                sums[section_of[subset]] += weight
            of_subset = {subset: weight / sums[section_of[subset]] for subset, weight in of_subset.items()}
        return np.array([of_subset[unit.subset] / sizes[unit.subset] for unit in units])

    def _combined(self, benchmark: Benchmark, outcomes: Figures, counts: np.ndarray) -> Figures:
        """Outcomes [draws, units] and counts [resamples, units] -> figures [draws, resamples]."""
        sections: dict[str, dict[str, np.ndarray]] = {}
        sizes: Figures = {}
        for unit in benchmark.units:
            if unit.subset not in sizes:
                members = benchmark.groups[unit.subset]
                sizes[unit.subset] = counts[:, members].sum(axis=1)
                if sizes[unit.subset].all():
                    sections.setdefault(unit.section, {})[unit.subset] = members
        figures: Figures = {}
        for figure, values in outcomes.items():
            subset_means: Figures = {}
            section_means: Figures = {}
            for section, subsets in sections.items():
                means = {name: values[:, members] @ counts[:, members].T / sizes[name] for name, members in subsets.items()}
                section_means[section] = _mean(means, {name: self.weights.get(name, sizes[name]) for name in means})
                subset_means |= means
            if self.overall == "units":
                figures[figure] = _mean(subset_means, sizes)
            else:
                parts = subset_means if self.overall == "subsets" else section_means
                figures[figure] = _mean(parts, dict.fromkeys(parts, 1.0))
            if figure == OVERALL:
                figures |= section_means | subset_means
        return figures


def _mean(figures: Figures, weights: Mapping[str, np.ndarray | float]) -> np.ndarray:
    """The mean of `figures` [draws, resamples], weighted by numbers or arrays [resamples]."""
    return sum(array * weights[name] for name, array in figures.items()) / sum(weights[name] for name in figures)


@dataclass(frozen=True)
class RocAuc:
    """Area under the ROC curve of single responses: how well totals tell reward 1 from reward 0, ties counting half.

    Overall is over all units pooled. No verdict is the worst possible one: below all totals for reward 1, above all for reward 0. A group
    that lacks one of the two rewards has no area: NaN.
    """

    def values(self, verdicts: Verdicts, counts: np.ndarray) -> Figures:
        scores, positive = _scores(verdicts)
        figures = {}
        for name, members in _pooled(verdicts.benchmark).items():
            chosen = np.repeat(members, counts[members])
            if len(chosen):
                figures[name] = _area(scores[:, chosen], positive[chosen])
        return figures

    def intervals(self, verdicts: Verdicts) -> dict[str, Interval | None]:
        scores, positive = _scores(verdicts)
        return {name: roc_area(scores[:, members], positive[members])[1] for name, members in _pooled(verdicts.benchmark).items()}


def _pooled(benchmark: Benchmark) -> dict[str, np.ndarray]:
    return {OVERALL: np.arange(len(benchmark.units))} | benchmark.groups


def _scores(verdicts: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """(totals float64 [draws, units], whether the reward is 1 [units])."""
    positive = np.array([item.record.rewards[0] == 1 for item in verdicts.benchmark.items])
    scores = np.concatenate(verdicts.totals, axis=1)
    return np.where(np.isnan(scores), np.where(positive, -np.inf, np.inf), scores), positive


def _area(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """float64 [draws]: the area under the ROC curve of `scores` [draws, units], from the rank sum (Mann-Whitney U)."""
    ones, zeros = positive.sum(), (~positive).sum()
    if not ones or not zeros:
        return np.full(len(scores), np.nan)
    return (rankdata(scores, axis=1)[:, positive].sum(axis=1) - ones * (ones + 1) / 2) / (ones * zeros)
