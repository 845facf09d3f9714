"""Scoring schemes: how a benchmark's published figures are computed from verdicts, and their 95% confidence intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from rlsys.documents.core import Interval
from rlsys.evaluation.benchmarks.core import Benchmark
from rlsys.evaluation.benchmarks.verdicts import Verdicts
from rlsys.evaluation.statistics import auc, auc_ci, mean_ci

Figures = dict[str, np.ndarray]
"""Figure name -> float64. Always includes "overall" and, for figures per resample, every section and subset."""

OVERALL = "overall"


class Scheme(Protocol):
    """Compute a benchmark's figures from its verdicts."""

    def values(self, verdicts: Verdicts) -> Figures:
        """Return every figure, float64 [resamples]."""
        ...

    def intervals(self, verdicts: Verdicts) -> dict[str, Interval | None]:
        """Return the interval of the mean over resamples of each figure that is a mean over clusters; None if there are too few."""
        ...


def accuracy(verdicts: Verdicts) -> Figures:
    """Return the fraction of a cluster's items that were judged correctly."""
    return {OVERALL: verdicts.mean(verdicts.right)}


def no_extras(verdicts: Verdicts) -> Figures:
    return {}


@dataclass(frozen=True)
class Means:
    """Figures that are weighted means over clusters: plain, or averaged by subset or section."""

    outcomes: Callable[[Verdicts], Figures] = accuracy
    """Values by figure name, float64 [resamples, clusters]. "overall" is also reported by group; other figures only overall."""
    overall: Literal["clusters", "subsets", "sections"] = "clusters"
    """The overall figure is the unweighted mean over these."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of a subset within its section; the default is its number of clusters."""
    extras: Callable[[Verdicts], Figures] = no_extras
    """Published figures that are not means over clusters, [resamples]; they have no interval."""

    def values(self, verdicts: Verdicts) -> Figures:
        figures: Figures = {}
        for figure, outcomes in self.outcomes(verdicts).items():
            for name, members in _figure_members(verdicts.benchmark, figure):
                weights = self._weights(verdicts.benchmark, members, name == figure)
                figures[name] = outcomes[:, members] @ weights / weights.sum()
        return figures | self.extras(verdicts)

    def intervals(self, verdicts: Verdicts) -> dict[str, Interval | None]:
        benchmark = verdicts.benchmark
        subsets = np.unique([cluster.subset for cluster in benchmark.clusters], return_inverse=True)[1]
        intervals: dict[str, Interval | None] = {}
        for figure, outcomes in self.outcomes(verdicts).items():
            values = outcomes.mean(axis=0)
            binary = bool(np.isin(values, (0.0, 1.0)).all())
            for name, members in _figure_members(benchmark, figure):
                weights = self._weights(benchmark, members, name == figure)
                strata = np.unique(subsets[members], return_inverse=True)[1]
                span = (min(0.0, float(values.min())), max(1.0, float(values.max())))
                intervals[name] = mean_ci(values[members], weights, strata if strata.any() else None, span, binary)
        return intervals

    def _weights(self, benchmark: Benchmark, members: np.ndarray, overall: bool) -> np.ndarray:
        """Return the weight of each member cluster in the figure of its group."""
        clusters = [benchmark.clusters[member] for member in members]
        sizes = Counter(cluster.subset for cluster in clusters)
        subset_weights: dict[str, float] = {subset: self.weights.get(subset, size) for subset, size in sizes.items()}
        if overall and self.overall == "clusters":
            subset_weights = dict(sizes)
        elif overall and self.overall == "subsets":
            subset_weights = dict.fromkeys(sizes, 1.0)
        elif overall:
            section_of = {cluster.subset: cluster.section for cluster in clusters}
            sums: dict[str, float] = {}
            for subset, weight in subset_weights.items():
                sums[section_of[subset]] = sums.get(section_of[subset], 0.0) + weight
            subset_weights = {subset: weight / sums[section_of[subset]] for subset, weight in subset_weights.items()}
        return np.array([subset_weights[cluster.subset] / sizes[cluster.subset] for cluster in clusters])


def _figure_members(benchmark: Benchmark, figure: str = OVERALL) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a figure over all clusters and, for "overall", the same figure of each section and subset, with their cluster indices."""
    yield figure, np.arange(len(benchmark.clusters))
    if figure == OVERALL:
        yield from benchmark.groups.items()


@dataclass(frozen=True)
class RocAuc:
    """ROC AUC of single responses: how well totals separate reward 1 from reward 0; ties count half.

    The overall figure pools all clusters. A missing verdict ranks worst: below every total for reward 1, above every total for reward 0.
    The AUC of a group with only one of the two rewards is undefined: NaN.
    """

    def values(self, verdicts: Verdicts) -> Figures:
        scores, positive = _scores(verdicts)
        return {name: auc(scores[:, members], positive[members]) for name, members in _figure_members(verdicts.benchmark)}

    def intervals(self, verdicts: Verdicts) -> dict[str, Interval | None]:
        scores, positive = _scores(verdicts)
        return {name: auc_ci(scores[:, members], positive[members])[1] for name, members in _figure_members(verdicts.benchmark)}


def _scores(verdicts: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """Return (totals float64 [resamples, clusters], whether the reward is 1, bool [clusters])."""
    positive = np.array([item.record.rewards[0] == 1 for item in verdicts.benchmark.items])
    scores = np.concatenate(verdicts.totals, axis=1)
    return np.where(np.isnan(scores), np.where(positive, -np.inf, np.inf), scores), positive
