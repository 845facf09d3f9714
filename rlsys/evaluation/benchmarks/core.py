"""The benchmark types: items to judge, the clusters they count towards, and the scheme that scores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rlsys.data.readers import Report
from rlsys.data.records import Record
from rlsys.documents.evaluation import BenchmarkRows

if TYPE_CHECKING:
    from rlsys.evaluation.benchmarks.schemes import Scheme

SCORES = (1, 10)
"""Score range of every item, including single responses (which use 0..1 in training: `rlsys.rewards.extraction.score_range`)."""


@dataclass(frozen=True)
class Item:
    """One judge input."""

    id: str
    """Unique within the benchmark."""
    record: Record
    """Its rewards are the ground truth. Several responses may share the highest (Reward Bench 2 Ties, best-of-K, a tied vote)."""
    cluster: int
    """Index into `Benchmark.clusters` of the cluster it belongs to."""
    subset: str
    order: tuple[int, ...] | None = None
    """Order in which to show the responses (order[p]: the response at position p) if the benchmark fixes one; None: shuffle."""
    pairs: tuple[tuple[int, int], ...] | None = None
    """(better, worse) response indices, if the benchmark scores pairs within one input."""


@dataclass(frozen=True)
class Cluster:
    """Items that count as one observation: a row of the benchmark's file (in Ties, the two rows of a prompt). eval.json calls it a unit."""

    id: str
    subset: str
    section: str
    """The group of subsets it belongs to; the subset itself if the benchmark has no sections."""


@dataclass(frozen=True)
class Benchmark:
    """A loaded benchmark. Items of a cluster are adjacent, and clusters are ordered by their first items."""

    name: str
    items: tuple[Item, ...]
    clusters: tuple[Cluster, ...]
    scheme: Scheme
    """The published scoring."""
    best_first: bool = False
    """The format lists the best response first, so file order is meaningless as a presentation order."""
    report: Report = field(default_factory=Report, compare=False)
    """Rows read and rejected, with reasons."""
    rows: BenchmarkRows = field(default=BenchmarkRows(), compare=False)

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [clusters]: the index of each cluster's first item."""
        return np.searchsorted([item.cluster for item in self.items], np.arange(len(self.clusters)))

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Section or subset name -> int64 cluster indices, sections first. A section and subset of the same name have the same clusters."""
        names = [(cluster.section, cluster.subset) for cluster in self.clusters]
        members: dict[str, list[int]] = {name: [] for column in zip(*names) for name in column}
        for index, pair in enumerate(names):
            for name in set(pair):
                members[name].append(index)
        return {name: np.array(indices) for name, indices in members.items()}
